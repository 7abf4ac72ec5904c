from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import TraceError, TraceFormatError, TraceInconsistentError
from smartpool.trace import ALLOCATE, FREE, Trace, bundled, bundled_names

TRACES = Path(__file__).parents[1] / "data" / "traces"
RECORDED = sorted(path.stem for path in TRACES.glob("*.npz"))


@st.composite
def programs(draw, max_events=40):
    """Events of a valid trace, as rows, with ids that have gaps and come up again."""
    live: dict[int, int] = {}
    rows = []
    time = 0
    for _ in range(draw(st.integers(0, max_events))):
        time += draw(st.integers(0, 9))
        stream = draw(st.integers(0, 255))
        if live and draw(st.booleans()):
            number = draw(st.sampled_from(sorted(live)))
            rows.append((FREE, number, live.pop(number), stream, time))
        else:
            number = draw(st.integers(0, 2**31 - 1).filter(lambda n: n not in live) | st.integers(0, 5))
            if number in live:
                continue
            live[number] = draw(st.integers(1, 2**50))
            rows.append((ALLOCATE, number, live[number], stream, time))
    return rows


def columns(rows):
    made = list(zip(*rows, strict=True)) or [()] * 5
    return dict(zip(("op", "id", "size", "stream", "t_us"), made, strict=True))


def first_fault(rows):
    """The first row that contradicts those before it, by a plain walk; None where there is none."""
    live: dict[int, int] = {}
    for row, (op, number, size) in enumerate(rows):
        if op == ALLOCATE:
            if number in live:
                return row
            live[number] = size
        elif live.pop(number, None) is None:
            return row
    return None


class TestValidation:
    @given(programs())
    def test_valid_programs_are_accepted(self, rows):
        trace = Trace("x", **columns(rows))
        trace.check()
        assert [
            tuple(map(int, row)) for row in zip(*(getattr(trace, c) for c in columns(rows)), strict=True)
        ] == rows

    @given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=12))
    def test_the_row_at_fault_is_that_of_a_plain_walk(self, pairs):
        rows = [(op, number, 8) for op, number in pairs]
        fault = first_fault(rows)
        made = {name: [row[i] for row in rows] for i, name in enumerate(("op", "id", "size"))}
        if fault is None:
            Trace.from_columns("x", **made)
        else:
            with pytest.raises(TraceInconsistentError, match=rf"trace 'x', row {fault}:"):
                Trace.from_columns("x", **made)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"op": [1, 0, 1]}, "row 0: frees allocation 0, which was never made"),
            ({"op": [0, 1, 1], "id": [0, 0, 0]}, "row 2: frees allocation 0 for the second time"),
            ({"id": [0, 0, 0]}, "row 1: allocates with id 0, which is still live"),
            ({"id": [0, 1, 2]}, "row 2: frees allocation 2, which was never made"),
            ({"size": [8, 0, 8]}, "row 1: expected a size above 0, got 0"),
            ({"size": [8, -5, 8]}, "row 1: expected a size above 0, got -5"),
            ({"size": [8, 8, 9]}, "row 2: expected the free of allocation 0 to carry its size 8, got 9"),
            ({"size": [2**62, 8, 2**62]}, r"row 0: expected less than 2\*\*62 live bytes"),
            ({"size": [2**61, 2**61, 2**61]}, r"row 1: expected less than 2\*\*62 live bytes"),
            ({"op": [0, 2, 1]}, r"row 1: expected op 0 \(allocate\) or 1 \(free\), got 2"),
            ({"id": [0, -1, 0]}, "row 1: expected an id of at least 0, got -1"),
            ({"t_us": [-1, 0, 0]}, "row 0: expected t_us of at least 0, got -1"),
            ({"t_us": [0, 5, 4]}, "row 2: expected t_us not to decrease, got 4"),
        ],
    )
    def test_contradictions_name_their_row(self, change, message):
        good = {"op": [0, 0, 1], "id": [0, 1, 0], "size": [8, 8, 8], "stream": [0] * 3, "t_us": [0, 1, 2]}
        Trace("x", **good)
        with pytest.raises(TraceInconsistentError, match=message):
            Trace("x", **{**good, **change})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"op": [0]}, "expected columns of one length"),
            ({"op": [[0, 0, 1]]}, "column 'op' to be one-dimensional and of integers, got int64 of shape"),
            ({"size": [8.0, 8.0, 8.0]}, "column 'size' to be one-dimensional and of integers, got float64"),
            ({"size": [8, 2**70, 8]}, "column 'size'.*got object"),
            ({"size": np.array([8, 2**63, 8], np.uint64)}, "row 1: expected 'size' in"),
            ({"stream": [0, 256, 0]}, r"row 1: expected 'stream' in \[0, 255\], got 256"),
            ({"id": [0, 2**31, 0]}, "row 1: expected 'id' in"),
            ({"op": ["a", "b", "c"]}, "column 'op'"),
            ({"op": [[0], [0, 1], [1]]}, "column 'op' cannot be read"),
            ({"name": 5}, "expected the name of a trace to be a string, got 5"),
            ({"meta": {"x": object()}}, "meta cannot be written as JSON"),
            ({"meta": {"x": float("nan")}}, "meta cannot be written as JSON"),
        ],
    )
    def test_columns_that_are_none(self, change, message):
        good = {"op": [0, 0, 1], "id": [0, 1, 0], "size": [8, 8, 8], "stream": [0] * 3, "t_us": [0, 1, 2]}
        with pytest.raises(TraceFormatError, match=message):
            Trace(**{"name": "x", **good, **change})

    def test_all_are_value_errors_of_one_family(self):
        assert issubclass(TraceFormatError, TraceError)
        assert issubclass(TraceInconsistentError, TraceError)
        assert issubclass(TraceError, ValueError)

    def test_an_id_may_come_again_once_it_was_freed(self):
        trace = Trace.from_columns("x", op=[0, 1, 0, 1, 0], id=[3] * 5, size=[1, 1, 2, 2, 3])
        assert trace.allocations == 3
        assert [column.tolist() for column in trace.lifetimes()] == [[0, 2, 4], [1, 3, 5], [1, 2, 3]]


class TestDerived:
    @given(programs())
    def test_live_bytes_and_lifetimes_agree_with_a_plain_walk(self, rows):
        trace = Trace("x", **columns(rows))
        live: dict[int, tuple[int, int]] = {}
        curve, intervals = [], {}
        for row, (op, number, size, _, _) in enumerate(rows):
            if op == ALLOCATE:
                live[number] = row, size
                intervals[row] = [len(rows), size]
            else:
                start, _ = live.pop(number)
                intervals[start][0] = row
            curve.append(sum(held for _, held in live.values()))
        start, end, size = trace.lifetimes()
        assert trace.live_bytes().tolist() == curve
        assert trace.peak_live_bytes == max(curve, default=0)
        assert {
            a: [b, c] for a, b, c in zip(start.tolist(), end.tolist(), size.tolist(), strict=True)
        } == intervals
        assert start.tolist() == sorted(intervals)
        assert {column.dtype for column in (start, end, size)} == {np.dtype(np.int64)}
        assert (end > start).all()

    @given(programs())
    def test_allocation_numbers_are_dense_and_used_once(self, rows):
        trace = Trace("x", **columns(rows))
        numbers = trace.allocation_numbers()
        allocates = trace.op == ALLOCATE
        assert numbers[allocates].tolist() == list(range(trace.allocations))
        held = {}
        for op, number, dense in zip(trace.op.tolist(), trace.id.tolist(), numbers.tolist(), strict=True):
            if op == ALLOCATE:
                held[number] = dense
            else:
                assert held.pop(number) == dense

    @given(programs(), st.integers(0, 50))
    def test_every_prefix_is_a_trace(self, rows, events):
        assert Trace("x", **columns(rows)).prefix(events) == Trace("x", **columns(rows[:events]))

    def test_of_nothing(self):
        trace = Trace.from_columns("nothing", op=[], id=[], size=[])
        assert (len(trace), trace.allocations, trace.streams, trace.peak_live_bytes) == (0, 0, 0, 0)
        assert [len(column) for column in trace.lifetimes()] == [0, 0, 0]
        assert trace.allocation_numbers().tolist() == []

    def test_streams_counts_up_to_the_highest(self):
        assert Trace.from_columns("x", op=[0, 0], id=[0, 1], size=[1, 1], stream=[0, 3]).streams == 4


class TestValue:
    def test_columns_are_copies_that_nobody_can_write_to(self):
        sizes = np.array([8, 9])
        trace = Trace.from_columns("x", op=[0, 0], id=[0, 1], size=sizes)
        sizes[:] = 0
        assert trace.size.tolist() == [8, 9]
        for column in (trace.op, trace.id, trace.size, trace.stream, trace.t_us, trace._partner):
            with pytest.raises(ValueError, match="read-only"):
                column[0] = 1
        with pytest.raises(AttributeError):
            trace.name = "y"

    def test_meta_is_a_copy_and_carries_the_name(self):
        given_meta = {"peaks": [1, 2], "name": "old"}
        trace = Trace.from_columns("new", op=[0], id=[0], size=[1], meta=given_meta)
        given_meta["peaks"].append(3)
        assert trace.meta == {"peaks": [1, 2], "name": "new"}

    def test_equality_is_by_value(self):
        def make(size):
            return Trace.from_columns("x", op=[0], id=[0], size=[size])

        assert make(1) == make(1)
        assert make(1) != make(2)
        assert make(1) != "x"
        with pytest.raises(TypeError, match="unhashable"):
            hash(make(1))

    @given(programs(max_events=10))
    def test_copies_and_pickles_are_equal(self, rows):
        trace = Trace("x", **columns(rows), meta={"a": [1, {"b": None}]})
        assert deepcopy(trace) == trace
        assert pickle.loads(pickle.dumps(trace)) == trace

    def test_repr_is_short(self):
        assert (
            repr(Trace.from_columns("x", op=[0], id=[0], size=[1])) == "Trace('x', events=1, allocations=1)"
        )


class TestRecorded:
    def test_all_nine_are_here(self):
        assert len(RECORDED) == 9

    @pytest.mark.parametrize("name", RECORDED)
    def test_live_never_passes_what_the_recorder_saw(self, name):
        trace = Trace.load(TRACES / f"{name}.npz")
        assert trace.name == name
        assert trace.streams == trace.meta["streams"]
        assert trace.allocations == trace.meta["kinds"]["alloc"]
        assert len(trace) - trace.allocations == trace.meta["kinds"]["free_requested"]
        assert 0.2 * trace.meta["peak_requested"] < trace.peak_live_bytes <= trace.meta["peak_requested"]
        assert np.array_equal(trace.allocation_numbers(), trace.id)

    def test_bundled_traces_are_those(self):
        assert bundled_names() == ["dataframe-mix", "llama-train", "multistream-mix"]
        for name in bundled_names():
            assert Trace.load(bundled(name)) == Trace.load(TRACES / f"{name}.npz")

    def test_bundled_of_another_name(self):
        with pytest.raises(TraceError, match=r"expected one of dataframe-mix, .*, got '\.\./x'"):
            bundled("../x")


class TestAddressesAndSites:
    def made(self, **more) -> Trace:
        return Trace.from_columns("t", op=[0, 0, 1], id=[0, 1, 0], size=[8, 9, 8], **more)

    def test_they_are_kept_and_compared(self):
        trace = self.made(address=[64, 128, 64], site=[0, -1, 0], meta={"sites": ["a.py:1 f"]})
        assert trace.sites == ("a.py:1 f",)
        assert trace.prefix(2).address.tolist() == [64, 128]
        assert trace != self.made()
        assert trace != self.made(address=[64, 130, 64], site=[0, -1, 0], meta={"sites": ["a.py:1 f"]})
        assert list(self.made().columns()) == ["op", "id", "size", "stream", "t_us"]
        assert self.made(meta={"sites": ["unused"]}).sites == ()
        trace.check()

    @pytest.mark.parametrize(
        ("more", "error", "match"),
        [
            ({"address": [1, 2]}, TraceFormatError, "columns of one length"),
            ({"address": [1, -2, 1]}, TraceInconsistentError, "row 1: expected an address"),
            ({"address": [1, 2, 3]}, TraceInconsistentError, "row 2: .* to carry its address 1, got 3"),
            ({"address": [1, (1 << 62) - 8, 1]}, TraceInconsistentError, "row 1: expected an address whose"),
            (
                {"site": [0, 0, -1], "meta": {"sites": ["f"]}},
                TraceInconsistentError,
                "row 2: .* to carry its site 0, got -1",
            ),
            ({"site": [0, 0, 0]}, TraceFormatError, "meta\\['sites'\\] to be a list"),
            ({"site": [0, 0, 0], "meta": {"sites": [7]}}, TraceFormatError, "list of strings"),
            ({"site": [0, 1, 0], "meta": {"sites": ["f"]}}, TraceInconsistentError, "row 1: expected a site"),
            (
                {"site": [0, -2, 0], "meta": {"sites": ["f"]}},
                TraceInconsistentError,
                "row 1: expected a site",
            ),
        ],
    )
    def test_what_they_may_not_be(self, more, error, match):
        with pytest.raises(error, match=match):
            self.made(**more)
