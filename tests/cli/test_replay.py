from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from smartpool import __version__
from smartpool.cli import main
from smartpool.trace.baselines import BASELINES

TRACES = Path(__file__).parents[1] / "data" / "traces"

KEYS = [
    "trace", "allocator", "device", "events", "streams", "peak_live_bytes", "peak_reserved_bytes",
    "fragmentation", "seconds", "driver_seconds", "driver_calls", "microseconds_per_operation",
    "failed_requests", "passes", "by_pass",
]  # fmt: skip

MEMORY_CALLS = {"allocate", "free", "create_chunk", "release_chunk", "map_chunk", "unmap", "enable_access"}
BY_PASS = ["peak_reserved_bytes", "fragmentation", "seconds", "driver_seconds", "driver_calls"]


def replay(capsys, *arguments):
    status = main(["replay", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_json_is_one_object_with_exactly_these_keys(capsys):
    status, out, err = replay(capsys, "dataframe-mix", TRACES / "multistream-mix.npz", "--json")
    document = json.loads(out)
    assert (status, err) == (0, "")
    assert list(document) == ["schema", "version", "machine", "runs"]
    assert (document["schema"], document["version"]) == (1, __version__)
    assert [list(run) for run in document["runs"]] == [KEYS] * 10
    allocators = ["smartpool", "pytorch", "pytorch-expandable", "cupy", "rmm"]
    assert [run["allocator"] for run in document["runs"]] == allocators * 2
    assert {run["device"] for run in document["runs"]} == {"model:141GiB"}
    assert document["runs"][1]["peak_reserved_bytes"] == 2382364672  # what PyTorch itself showed
    assert document["runs"][1]["driver_calls"] == {"allocate": 16}


def test_passes_are_played_in_one_allocator_of_each_kind(capsys):
    arguments = ["multistream-mix", "--against", "all", "--json"]
    once = json.loads(replay(capsys, *arguments)[1])["runs"]
    status, out, _ = replay(capsys, *arguments, "--passes", "3")
    runs = json.loads(out)["runs"]
    assert status == 0
    assert [run["allocator"] for run in runs] == ["smartpool", *BASELINES]
    for run, alone in zip(runs, once, strict=True):
        assert (run["passes"], run["events"]) == (3, 3 * alone["events"])
        first = run["by_pass"][0]
        assert first["peak_reserved_bytes"] == alone["peak_reserved_bytes"]
        assert first["fragmentation"] == alone["fragmentation"]
        assert run["peak_live_bytes"] == alone["peak_live_bytes"]
        assert run["peak_reserved_bytes"] == max(one["peak_reserved_bytes"] for one in run["by_pass"])
        assert [set(one) for one in run["by_pass"]] == [set(BY_PASS)] * 3
    for run in runs[1:]:  # the peers keep what they have, and an equal pass finds all of it
        if run["allocator"] != "driver-pool":  # which moves its chunks
            assert not any(MEMORY_CALLS & one["driver_calls"].keys() for one in run["by_pass"][1:])


def test_the_table_has_the_first_pass_and_the_last(capsys):
    status, out, _ = replay(
        capsys, "multistream-mix", "dataframe-mix", "--against", "pytorch,optimum", "--passes", "3"
    )
    assert status == 0
    heads = re.findall(r"^pass \d of 3$", out, re.MULTILINE)
    assert heads == ["pass 1 of 3", "pass 3 of 3"]
    first, last = re.split(r"^pass \d of 3$", out, flags=re.MULTILINE)[1:]
    assert re.search(r"pytorch +1\.12 GiB +2\.22 GiB +49\.4 %\S* +\d\S* [mu]s", first)
    assert re.search(r"pytorch +1\.12 GiB +2\.22 GiB +49\.4 %\S* +0 s", last)
    assert re.search(r"optimum +1\.12 GiB", last)


def test_the_picture_shows_all_passes(capsys, tmp_path):
    path = tmp_path / "passes.html"
    assert replay(capsys, "dataframe-mix", "--passes", "2", "--picture", path)[0] == 0
    assert " in 2 passes on 1 stream" in path.read_text(encoding="utf-8")


def test_all_means_every_baseline(capsys):
    _, out, _ = replay(capsys, "dataframe-mix", "--against", "all", "--json")
    assert [run["allocator"] for run in json.loads(out)["runs"]] == ["smartpool", *BASELINES]


def test_a_table_for_people(capsys):
    status, out, _ = replay(capsys, "dataframe-mix", "--against", "pytorch")
    assert status == 0
    assert re.search(r"pytorch +1\.12 GiB +2\.22 GiB +49\.4 %", out)


def test_own_streams_and_none_to_compare_with(capsys):
    _, out, _ = replay(capsys, "multistream-mix", "--streams", "own", "--against", "none", "--json")
    (run,) = json.loads(out)["runs"]
    assert run["streams"] == 4
    assert run["driver_calls"]["create_stream"] == 3


def test_a_failed_request_is_status_3(capsys):
    status, out, _ = replay(
        capsys, "dataframe-mix", "--against", "rmm,pytorch,rmm", "--capacity", "1300MiB", "--json"
    )
    ours, rmm, pytorch = json.loads(out)["runs"]
    assert status == 3
    assert (ours["allocator"], rmm["allocator"], pytorch["allocator"]) == ("smartpool", "rmm", "pytorch")
    assert ours["failed_requests"] == 0 < rmm["failed_requests"]
    assert max(run["peak_reserved_bytes"] for run in (ours, rmm, pytorch)) <= 1300 << 20
    assert ours["device"] == "model:1300MiB"


@pytest.mark.parametrize("capacity", ["2 GiB", str(2 << 30)])
def test_sizes_are_read_by_humans_and_programs(capsys, capacity):
    _, out, _ = replay(capsys, "dataframe-mix", "--against", "none", "--capacity", capacity, "--json")
    assert json.loads(out)["runs"][0]["device"] == "model:2GiB"


def test_a_policy_has_its_name(capsys):
    _, out, _ = replay(capsys, "dataframe-mix", "--against", "none", "--policy", "tight", "--json")
    assert json.loads(out)["runs"][0]["allocator"] == "smartpool-tight"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.npz"], "bundled traces dataframe-mix.*nowhere.npz.*no such file$"),
        (["dataframe-mx"], "no such file; did you mean 'dataframe-mix'[?]$"),
        (["dataframe-mix", "--device", "model:999999999TiB"], "no device .* at most 16 PiB, got 954 EiB"),
        (["dataframe-mix", "--device", "model:1PiB"], "expected a device whose addresses fit below"),
        (["dataframe-mix", "--against", "tcmalloc"], "pytorch-expandable.*tcmalloc"),
        (["dataframe-mix", "--against", ","], "or all, or none"),
        (["dataframe-mix", "--capacity", "many"], "such as '80GiB'.*'many'"),
        (["dataframe-mix", "--capacity", "0"], "above 0"),
        (["dataframe-mix", "--passes", "0"], "from 1 to 100000, got '0'"),
        (["dataframe-mix", "--passes", "two"], "from 1 to 100000, got 'two'"),
        (["dataframe-mix", "--device", "abacus"], "'abacus'"),
        (["dataframe-mix", "--streams", "two"], "invalid choice: 'two'"),
        ([], "TRACE"),
    ],
)
def test_unusable_arguments_are_status_2(capsys, arguments, says):
    status, out, err = replay(capsys, *arguments)
    assert (status, out) == (2, "")
    assert re.search(says, " ".join(err.split()))


def test_a_damaged_file_is_status_2(capsys, tmp_path):
    path = tmp_path / "cut.npz"
    path.write_bytes((TRACES / "dataframe-mix.npz").read_bytes()[:5000])
    status, out, err = replay(capsys, path, "--json")
    assert (status, out) == (2, "")
    assert "cut.npz" in err


def test_a_directory_of_a_bundled_name_is_no_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataframe-mix").mkdir()
    status, _, _ = replay(capsys, "dataframe-mix", "--against", "none", "--json")
    assert status == 0


def test_policies_by_name_and_by_number(capsys):
    def reserved(policy):
        _, out, _ = replay(capsys, "dataframe-mix", "--policy", policy, "--against", "none", "--json")
        (run,) = json.loads(out)["runs"]
        return run["allocator"], run["peak_reserved_bytes"]

    assert reserved("tight") == ("smartpool-tight", reserved("0")[1])
    assert reserved("0.25")[0] == "smartpool-0.25"
    assert reserved("0")[1] <= reserved("0.25")[1] < reserved("1")[1] == reserved("fast")[1]


@pytest.mark.parametrize("policy", ["fastest", "1.5", "-0.1", "nan", ""])
def test_a_wrong_policy_is_refused(capsys, policy):
    assert main(["replay", "dataframe-mix", f"--policy={policy}"]) == 2
    assert "number from 0 to 1" in capsys.readouterr().err
