from __future__ import annotations

import pytest

from smartpool.trace import Trace
from smartpool.trace.builder import TraceBuilder


def built(*sites: str | None) -> Trace:
    builder = TraceBuilder("a test")
    for number, site in enumerate(sites):
        builder.allocate(4096 * number, 512, stream=0, time=number, site=site)
    for number in range(len(sites)):
        builder.free(4096 * number, time=len(sites) + number)
    return builder.build("t")


def test_places_are_numbered_as_they_come_and_frees_have_them_too():
    trace = built("a.py:1 f", None, "b.py:2 g", "a.py:1 f")
    assert trace.sites == ("a.py:1 f", "b.py:2 g")
    assert trace.site.tolist() == [0, -1, 1, 0] * 2
    assert trace.address.tolist() == [0, 4096, 8192, 12288] * 2


def test_without_places_there_is_no_column():
    trace = built(None, None)
    assert trace.site is None
    assert "sites" not in trace.meta


@pytest.mark.parametrize("letter", ["x", "\N{GRINNING FACE}", "\n", '"'])
def test_places_for_which_there_is_no_room_are_counted_and_the_rest_can_be_saved(tmp_path, letter):
    trace = built(*(f"{number}{letter * 20_000}" for number in range(40)))
    left_out = trace.meta["settled"]["sites_left_out"]
    assert 0 < left_out < 40
    assert (trace.site == -1).sum() == 2 * left_out
    trace.save(tmp_path / "t.npz")
    assert Trace.load(tmp_path / "t.npz") == trace


@pytest.mark.parametrize("pointer", ["0x7f00", -1, 1 << 63, (1 << 62) - 511, True])
def test_pointers_that_are_no_addresses_give_no_column(pointer):
    builder = TraceBuilder("a test")
    builder.allocate(pointer, 512, stream=0, time=0)
    assert builder.build("t").address is None
