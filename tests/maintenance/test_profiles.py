"""Profiles as files, and pools that read and write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from smartpool import MiB, SmartPool
from smartpool.errors import ConfigurationError
from smartpool.heap.arena import Range
from smartpool.heap.profile import HeapProfile
from smartpool.maintenance.profiles import read_profiles, write_profiles

GOOD = HeapProfile(2 * MiB, (2 * MiB, 6 * MiB), ((Range(512, 2 * MiB - 512), Range(2 * MiB, MiB)),))


def test_a_second_run_begins_where_the_first_ended(tmp_path):
    path = tmp_path / "run.json"
    with SmartPool("model:1GiB", profile=path) as pool:  # the first run: there is nothing yet
        pool.free(pool.malloc(300 * MiB))
        pool.save_profile()
        held = pool.managers[0].reserved_bytes
    with SmartPool("model:1GiB", profile=str(path)) as pool:
        wait_until(lambda: pool.managers[0].reserved_bytes == held)
        pool.free(pool.malloc(300 * MiB))
        assert pool.managers[0].reserved_bytes == held
        assert pool.managers[0].snapshot().grows == 0
        pool.save_profile(tmp_path / "other.json")
    assert (tmp_path / "other.json").read_text() == path.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.json", "run.json"]


def test_what_is_written_reads_back_equal(tmp_path):
    path = tmp_path / "profile.json"
    write_profiles(path, [GOOD, HeapProfile(0)])
    assert read_profiles(path, [2 * MiB, 0]) == [GOOD, HeapProfile(0)]
    assert read_profiles(tmp_path / "none.json", [2 * MiB]) == []


def test_a_profile_of_other_devices_is_refused(tmp_path):
    path = tmp_path / "profile.json"
    write_profiles(path, [GOOD])
    for granularities in ([], [4 * MiB], [2 * MiB] * 2):
        with pytest.raises(ConfigurationError, match=r"^profile: .*smallest chunks"):
            read_profiles(path, granularities)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["chunks", "pools"]), inner),
    max_leaves=8,
)


@given(st.data())
def test_whatever_is_in_the_file_it_is_a_profile_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("profiles") / "profile.json"
    write_profiles(path, [GOOD])
    document = json.loads(path.read_text())
    spot = data.draw(st.sampled_from(["format", "pools", "granularity", "chunks", "windows", "window", ""]))
    value, pool = data.draw(JSON), document["pools"][0]
    if spot in document:
        document[spot] = value
    elif spot in pool:
        pool[spot] = value
    elif spot == "window":
        pool["windows"][0] = value
    else:
        pool["windows"][0][0] = value
    path.write_text(json.dumps(document))
    try:
        read_profiles(path, [2 * MiB])
    except ConfigurationError as error:
        assert str(error).startswith("profile: ")  # noqa: PT017 - it need not raise


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0", "[" * 100_000])
def test_what_is_no_json_is_refused_and_the_pool_is_closed(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"^profile: "):
        SmartPool("model:1GiB", profile=path)
    with pytest.raises(ConfigurationError, match=r"^profile: "):
        SmartPool("model:1GiB", profile=tmp_path)


def test_a_path_is_needed():
    with SmartPool("model:1GiB") as pool, pytest.raises(ConfigurationError, match="name a file"):
        pool.save_profile()
    with SmartPool("model:1GiB") as pool, pytest.raises(ConfigurationError, match="got 3"):
        pool.save_profile(3)


@pytest.mark.parametrize("switch", ["enable_predictive_allocation", "enable_auto_defragmentation"])
def test_a_profile_that_nobody_would_read_is_refused(switch):
    with pytest.raises(ConfigurationError, match=rf"^profile: expected None with {switch}=False"):
        SmartPool("model:1GiB", profile="run.json", **{switch: False})
    with pytest.raises(ConfigurationError, match=r"^profile: expected a path"):
        SmartPool("model:1GiB", profile=3)
