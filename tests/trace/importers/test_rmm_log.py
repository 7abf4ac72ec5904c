from __future__ import annotations

import csv
import gzip
import re
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import RMM_LOG, histories, live_curve

from smartpool.errors import (
    TraceError,
    TraceFormatError,
    TraceInconsistentError,
)
from smartpool.trace import (
    from_rmm_log,
    read_any,
)

HEADER = "Thread,Time,Action,Pointer,Size,Stream\n"


HOUR_US = 60 * 60 * 1_000_000


DAY_US = 24 * HOUR_US


def clock(time_us):
    """The time of day as RMM writes it."""
    seconds, fraction = divmod(time_us % DAY_US, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"


def write_log(path, *lines, end="\n"):
    path.write_text(HEADER + "\n".join(lines) + end)
    return path


class TestRmmLog:
    def test_of_a_real_program(self):
        trace = from_rmm_log(RMM_LOG)
        lines = [line.split(",") for line in RMM_LOG.read_text().splitlines()[1:]]
        signed = np.cumsum([int(line[4]) * (1 if line[2] == "allocate" else -1) for line in lines])
        assert np.array_equal(trace.live_bytes(), signed)
        assert trace.meta == {
            "name": "rmm_log",
            "recorder": "rmm",
            "failed_allocations": 0,
            "sizes_that_differ": 0,
            "streams": 1,
            "settled": {},
        }
        first, last = lines[0][1], lines[-1][1]
        assert trace.t_us[-1] == round((float(last[6:]) - float(first[6:])) * 1e6)

    @given(histories())
    def test_synthesised_log_gives_the_same_live_curve(self, tmp_path_factory, events):
        lines = [
            f"{slot},06:37:24.{row:06},{'allocate' if allocates else 'free'},{slot:#x},{size},{stream:x}"
            for row, (allocates, slot, size, stream) in enumerate(events)
        ]
        trace = from_rmm_log(write_log(tmp_path_factory.mktemp("log") / "x.csv", *lines))
        assert trace.live_bytes().tolist() == live_curve(events)
        assert trace.t_us.tolist() == list(range(len(events)))

    def test_midnight_passes_and_old_fractions_are_read(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,23:59:59:999000,allocate,0x1,8,0x0",
            "2,00:00:00:001,allocate,0x2,8,0x0",
            "2,00:00:00.000500,free,0x2,8,0x0",
        )
        assert from_rmm_log(path).t_us.tolist() == [0, 2000, 2000]

    def test_failed_allocations_are_counted(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.000000,allocate failure,(nil),99,0",
            "1,00:00:00.000001,allocate,0x2,8,0",
            "1,00:00:00.000002,free,0x2,9,0",
        )
        trace = from_rmm_log(path)
        assert (len(trace), trace.meta["failed_allocations"], trace.meta["sizes_that_differ"]) == (2, 1, 1)
        assert trace.size.tolist() == [8, 8]

    def test_requests_of_no_bytes(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.000000,allocate,(nil),0,0",
            "1,00:00:00.000000,allocate,(nil),0,0",
            "1,00:00:00.000002,free,(nil),0,0",
            "1,00:00:00.000002,free,(nil),0,0",
        )
        assert from_rmm_log(path).meta["settled"] == {"empty_requests": 2}

    def test_free_of_what_is_not_live_is_an_error_or_counted(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.000000,allocate,0x2,8,0",
            "1,00:00:00.000001,free,0x2,8,0",
            "1,00:00:00.000002,free,0x2,8,0",
        )
        with pytest.raises(
            TraceInconsistentError, match=r"x\.csv, line 4: frees 0x2, which.*drop_unknown_frees=True"
        ):
            from_rmm_log(path)
        trace = from_rmm_log(path, drop_unknown_frees=True)
        assert (len(trace), trace.meta["settled"]) == (2, {"unknown_frees": 1})
        assert read_any(path, drop_unknown_frees=True) == trace

    @pytest.mark.parametrize(
        "line",
        [
            "1,00:00:00.000000,allocate,0x2,8",
            "1,00:00:00.000000,allocate,0x2,8,0,0",
            "1,00:00:00.000000,resize,0x2,8,0",
            "1,00:00:00.000000,allocate,0x2,-8,0",
            "1,00:00:00.000000,allocate,0x2,8.5,0",
            "1,00:00:00.000000,allocate,0x2,9999999999999999999,0",
            "1,00:00:00,allocate,0x2,8,0",
            "1,yesterday,allocate,0x2,8,0",
            "1,24:00:00.000000,allocate,0x2,8,0",
            "1,1634567890.,allocate,0x2,8,0",
            "1,00:00:00.000000,allocate,,8,0",
            "1,00:00:00.000000,allocate,0x2,8,",
            "1,00:00:00.000000,allocate,0x2,8,0x",
            "1,00:00:00.000000,allocate,0x2,8,(nil",
            "1,00:00:00.000000,free,0x2,,0",
            "1,00:00:00.000000,allocate,0x2,٨,0",
            "1,00:00:00.000000,allocate,0x2,1_000,0",
            "1,00:00:00.000000,allocate,0x2,8,0" + "0" * 2000,
            "1,00:00:00.0000",
            "é",
            "\0",
        ],
    )
    def test_damaged_lines_are_named(self, tmp_path, line):
        path = write_log(tmp_path / "x.csv", "1,00:00:00.000000,allocate,0x1,8,0", line)
        with pytest.raises(TraceFormatError, match=r"x\.csv, line 3: expected") as caught:
            from_rmm_log(path)
        assert len(str(caught.value)) < 400 + len(str(path))

    def test_other_files_are_told_apart(self, tmp_path):
        path = tmp_path / "x.csv"
        path.write_text("id,lower,upper,size\n")
        with pytest.raises(TraceFormatError, match="expected the header 'Thread,Time"):
            from_rmm_log(path)
        path.write_text("")
        with pytest.raises(TraceFormatError, match="got an empty file"):
            from_rmm_log(path)
        path.write_text(HEADER)
        assert len(from_rmm_log(path)) == 0

    @given(
        st.integers(0, DAY_US - 1),
        st.lists(st.integers(-HOUR_US, HOUR_US) | st.integers(0, 21 * HOUR_US), max_size=20),
    )
    def test_times_of_day_are_the_times_that_they_were(self, tmp_path_factory, begin, steps):
        """Threads write in disorder, programs pause for the better part of a day, and midnights pass."""
        true = [begin, *(begin + step for step in accumulate(steps))]
        lines = [f"1,{clock(time)},allocate,{row + 1:#x},8,0x0" for row, time in enumerate(true)]
        trace = from_rmm_log(write_log(tmp_path_factory.mktemp("log") / "x.csv", *lines))
        assert trace.t_us.tolist() == [time - begin for time in accumulate(true, max)]

    @given(histories(), st.data())
    def test_logs_that_were_saved_again_are_the_same(self, tmp_path_factory, events, data):
        folder = tmp_path_factory.mktemp("log")
        rows = [
            [
                "7",
                clock(row),
                "allocate" if allocates else "free",
                f"0x{slot + 1:x}",
                str(size),
                f"0x{stream:x}",
            ]
            for row, (allocates, slot, size, stream) in enumerate(events)
        ]
        plain = write_log(folder / "x.csv", *map(",".join, rows))
        header = HEADER.strip().split(",")
        if data.draw(st.booleans()):  # of several adaptors on one sink
            rows.insert(data.draw(st.integers(0, len(rows))), header)
        table = [header, *rows]
        if data.draw(st.booleans()):
            table = [["" if row == header else str(at), *row] for at, row in enumerate(table)]
        order = data.draw(st.permutations(range(len(table[0]))))
        saved = folder / "saved" / "x.csv"
        saved.parent.mkdir()
        mark, end = data.draw(st.sampled_from(["", "\ufeff"])), data.draw(st.sampled_from(["\n", "\r\n"]))
        with saved.open("w", newline="", encoding="utf-8") as file:
            file.write(mark)
            quoting = data.draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
            csv.writer(file, quoting=quoting, lineterminator=end).writerows(
                [row[at] for at in order] for row in table
            )
        if data.draw(st.booleans()):
            saved.write_bytes(gzip.compress(saved.read_bytes()))
        trace = read_any(saved)
        assert trace == from_rmm_log(plain) == read_any(plain)
        assert trace.address.tolist() == [slot + 1 for _, slot, _, _ in events]

    def test_seconds_since_1970_and_the_words_of_the_guide(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,1634567890.123456,allocate,0x7f8a40000000,1024,0x7f8a38001020",
            "1,1634654290.5,deallocate,0x7f8a40000000,1024,0x7f8a38001020",
        )
        trace = from_rmm_log(path)
        assert (trace.op.tolist(), trace.t_us.tolist()) == ([0, 1], [0, 86_400_376_544])

    def test_nothing_is_dropped_and_every_failure_is_counted(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.0,free,(nil),0,0x0",
            "1,00:00:00.0,allocate,0x10,8,0x0",
            "1,00:00:00.1,free,0x0,0,(nil)",
            f"1,00:00:00.2,allocate failure,(nil),{2**64 - 1},0",
            f"1,00:00:00.3,allocate failure,(nil),{10**30},0",
            "1,00:00:00.4,free,0x10,8,0",
        )
        trace = from_rmm_log(path)
        assert (trace.op.tolist(), trace.streams, trace.meta["failed_allocations"]) == ([0, 1], 1, 2)
        assert trace.meta["settled"] == {}
        write_log(path, "1,00:00:00.0,free,(nil),8,0")
        with pytest.raises(TraceInconsistentError, match="frees 0x0, which is not live"):
            from_rmm_log(path)

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (
                "1,00:00:61.0,allocate,0x2,8,0",
                "expected the time as HH:MM:SS.ffffff or as seconds",
            ),
            (
                "1,00:00:01.0,resize,0x2,8,0",
                "expected the action allocate, allocate failure, free",
            ),
            ("1,00:00:01.0,free,nil,8,0", "expected the pointer as 0x..., (nil) or digits, got 'nil'"),
            ("1,00:00:01.0,free,0x2,8.0,0", "expected the size as bytes in digits, below 2**62, got '8.0'"),
            ("1,00:00:01.0,free,0x2,8,", "expected the stream as 0x..., (nil) or digits, got ''"),
            (
                "1,00:00:01.0,free,0x2,8",
                "expected 6 fields, as in the header, got 5: '1,00:00:01",
            ),
        ],
    )
    def test_the_field_that_is_wrong_is_named(self, tmp_path, line, said):
        with pytest.raises(TraceFormatError, match=re.escape(f"line 2: {said}")):
            from_rmm_log(write_log(tmp_path / "x.csv", line))

    @given(st.data())
    @settings(max_examples=150)
    def test_damaged_logs_give_a_trace_or_one_error(self, tmp_path_factory, data):
        whole = HEADER + "1,00:00:00.000000,allocate,0x2,8,0\n1,00:00:00.000001,free,0x2,8,0\n"
        damaged = bytearray(whole.encode()[: data.draw(st.integers(1, len(whole)))])
        for _ in range(data.draw(st.integers(0, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("fuzz") / "x.csv"
        path.write_bytes(damaged)
        try:
            from_rmm_log(path).check()
            message = str(path)
        except TraceError as error:
            message = str(error)
        assert str(path) in message
