"""Files that others wrote: whatever is in them, one clear error, in bounded memory, and nothing is run.

A file of each format is damaged in the ways that files are (cut off, bits turned over, pieces missing,
doubled, or filled with something else), and then there are those that somebody built on purpose.
"""

import io
import json
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartpool.cli import main
from smartpool.errors import PlanningError, SmartPoolError, TraceError, TraceFormatError
from smartpool.planner import IntervalSet, Plan, plan, read_csv
from smartpool.planner.reading import write_csv
from smartpool.report.dump import DUMP_FORMAT, read_dump
from smartpool.trace import Trace
from smartpool.trace.importers import from_rmm_log, from_torch_snapshot, read_any
from smartpool.trace.importers.plain_pickle import PlainUnpickler
from smartpool.units import MiB

TRACE = Trace.from_columns("good", op=[0, 0, 1, 0, 1], id=[0, 1, 0, 2, 1], size=[512, 7, 512, 9, 7])
INTERVALS = IntervalSet.from_arrays([0, 2, 4], [3, 6, 8], [10, 20, 10], id=["a", "b", "c"])
RMM = """\
Thread,Time,Action,Pointer,Size,Stream
1,10:00:00:000001,allocate,0x7f00,512,0
1,10:00:00:000002,allocate,0x7f80,1024,(nil)
1,10:00:01:000003,free,0x7f00,512,0
"""
EVENTS = "op,id,size,stream,t_us\n0,0,512,0,0\n0,1,64,1,5\n1,0,512,0,9\n"
SNAPSHOT = {
    "segments": [{"device": 0, "address": 4096, "stream": 0, "blocks": [{"size": 64, "state": "inactive"}]}],
    "device_traces": [
        [
            {"action": "alloc", "addr": 4096, "size": 64, "stream": 0, "time_us": 5},
            {"action": "free_requested", "addr": 4096, "size": 64, "stream": 0, "time_us": 9},
        ]
    ],
}
DUMP = {
    "format": DUMP_FORMAT,
    "version": 1,
    "story": dict.fromkeys(
        ("requested_bytes", "live_bytes", "live_blocks", "reserved_bytes", "cap_bytes"), 1
    ),
    "memory_map": {},
}


def saved(save, tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds") / "seed"
    save(path)
    return path.read_bytes()


READERS = {
    "trace": (Trace.load, TRACE.save),
    "rmm log": (from_rmm_log, lambda path: path.write_text(RMM)),
    "events": (read_any, lambda path: path.write_text(EVENTS)),
    "snapshot": (from_torch_snapshot, lambda path: path.write_bytes(pickle.dumps(SNAPSHOT, 2))),
    "later snapshot": (from_torch_snapshot, lambda path: path.write_bytes(pickle.dumps(SNAPSHOT, 5))),
    "intervals": (read_csv, lambda path: write_csv(path, INTERVALS, np.array([0, 10, 0]))),
    "plan": (Plan.load_file, lambda path: plan([0, 2], [3, 6], [10, 20]).save(path)),
    "dump": (read_dump, lambda path: path.write_text(json.dumps(DUMP))),
}
SEEDS = {}


@pytest.fixture(scope="module", autouse=True)
def seeds(tmp_path_factory):
    SEEDS.update({name: saved(save, tmp_path_factory) for name, (_, save) in READERS.items()})


@st.composite
def damages(draw):
    """Return a function that damages bytes."""
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(sorted(WAYS)), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4
        )
    )
    filling = draw(st.binary(min_size=1, max_size=24))
    return partial(damaged, steps=tuple(steps), filling=filling)


def damaged(data, *, steps, filling):
    for way, first, second in steps:
        low, high = sorted((int(first * len(data)), int(second * len(data))))
        data = WAYS[way](data, low, high, filling)
    return data


def flipped(data, low, high, filling):
    if not data:
        return filling
    at = min(low, len(data) - 1)
    return data[:at] + bytes([data[at] ^ (1 << high % 8)]) + data[at + 1 :]


WAYS = {
    "cut off": lambda data, low, _high, _: data[:low],
    "a bit": flipped,
    "missing": lambda data, low, high, _: data[:low] + data[high:],
    "doubled": lambda data, low, high, _: data[:high] + data[low:],
    "overwritten": lambda data, low, _high, filling: data[:low] + filling + data[low + len(filling) :],
    "inserted": lambda data, low, _high, filling: data[:low] + filling + data[low:],
    "large number": lambda data, low, _high, _: data[:low] + b"\xff\xff\xff\x7f" + data[low + 4 :],
    "many digits": lambda data, low, _high, _: data[:low] + b"9" * 5000 + data[low:],
    "lines": lambda data, _low, _high, _: data.replace(b"\n", b"\r\n", 1) + b"\n\n",
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages())
def test_damaged_files_are_read_or_refused(name, damage, tmp_path):
    path = tmp_path / "damaged.csv"
    path.write_bytes(damage(SEEDS[name]))
    read, _ = READERS[name]
    told = f"{path.name}: read"
    try:
        read(path)
    except (TraceError, PlanningError) as error:
        told = str(error)
    assert path.name in told
    assert len(told) < 2000


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(READERS)),
    damage=damages(),
    command=st.sampled_from(
        (["replay", "--against", "none", "--json"], ["convert"], ["plan", "--time-limit", "0"])
    ),
)
def test_a_command_tells_it_in_one_line(name, damage, command, tmp_path, capsys):
    path = tmp_path / "damaged"
    path.write_bytes(damage(SEEDS[name]))
    more = [str(tmp_path / "out.npz")] if command == ["convert"] else []
    status = main([command[0], str(path), *more, *command[1:]])
    lines = capsys.readouterr().err.splitlines()
    if status == 2:
        assert [line.partition("smartpool: error: ")[0] for line in lines] == [""]
        assert "[Errno" not in lines[0]
    else:
        assert status in (0, 3)


# ---------------------------------------------------------------------- on purpose

RAN = []


class Runs:
    """Runs when it is unpickled by those who allow it."""

    def __reduce__(self):
        return RAN.append, ("ran",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_runs_nothing(tmp_path, protocol):
    path = tmp_path / "snapshot.pickle"
    hostile = [Runs(), {"device_traces": [[Runs()]]}, {Runs(): 1}, print, os.system, np.arange(3), Trace]
    for thing in hostile:
        path.write_bytes(pickle.dumps(thing, protocol))
        with pytest.raises(SmartPoolError):
            read_any(path)
    assert RAN == []


def test_no_instruction_that_runs_is_known():
    """Of the pickle language's instructions, none is understood that imports, calls or builds."""
    known = {code for code in pickletools.opcodes if PlainUnpickler._ACTIONS[ord(code.code)] is not None}
    forbidden = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
    forbidden |= {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
    assert not forbidden & {code.name for code in known}


def npy(descr, shape, data, version=(1, 0)):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)


META = np.array(
    json.dumps({"schema": 1, "height": 1, "load": 1, "method": "m", "seconds": 0.0, "proved_optimal": True})
)


def meta_bytes(meta=META):
    file = io.BytesIO()
    np.lib.format.write_array(file, meta)
    return file.getvalue()


HEADERS = {
    "objects": npy("|O", (1,), pickle.dumps(Runs())),
    "absurd length": npy("<i8", (1 << 60,), b"\0" * 8),
    "negative length": npy("<i8", (-1,), b""),
    "many axes": npy("<i8", (1,) * 40, b"\0" * 8),
    "structured": npy([("a", "<i8")], (1,), b"\0" * 8),
    "nested": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    "code": b"\x93NUMPY\x01\x00\x40\x00{'descr':RAN.append(1),'fortran_order':False,'shape':(1,)}      ",
    "floats": npy("<f8", (1,), b"\0" * 8),
    "text": npy("<U3", (1,), b"\0" * 12),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("reader", ["trace", "plan"])
def test_headers_of_arrays_are_not_trusted(tmp_path, reader, header):
    path = tmp_path / "x.npz"
    columns = dict.fromkeys(("offsets", "op", "id", "size", "stream", "t_us"), HEADERS[header])
    archive(path, **columns, meta=meta_bytes())
    with pytest.raises((TraceFormatError, PlanningError), match=r"x\.npz"):
        READERS[reader][0](path)
    assert RAN == []


@pytest.mark.parametrize("reader", ["trace", "plan"])
def test_a_bomb_does_not_go_off(tmp_path, reader):
    """40 KiB that would unpack to 40 MiB, and a directory that claims 8 EiB."""
    bomb, liar = tmp_path / "bomb.npz", tmp_path / "liar.npz"
    zeros = npy("<i8", (5 * MiB,), bytes(40 * MiB))
    archive(
        bomb, **dict.fromkeys(("offsets", "op", "id", "size", "stream", "t_us"), zeros), meta=meta_bytes()
    )
    archive(liar, offsets=b"x", op=b"x", id=b"x", size=b"x", stream=b"x", t_us=b"x", meta=meta_bytes())
    data = bytearray(liar.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.index(b"PK\x01\x02") + 4)
    data[at + 20 : at + 28] = b"\xff" * 8
    liar.write_bytes(data)
    del zeros, data
    for path in (bomb, liar):
        assert peak_bytes(lambda path=path: refused(READERS[reader][0], path)) < 4 * MiB


def refused(read, path):
    with pytest.raises((TraceFormatError, PlanningError)):
        read(path)


def peak_bytes(run):
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_id_as_long_as_the_file_does_not_widen_all(tmp_path):
    path = tmp_path / "wide.csv"
    rows = "".join(f"{number},0,1,1\n" for number in range(2000))
    path.write_text(f"id,lower,upper,size\n{rows}{'x' * 60_000},0,1,1\n")
    assert peak_bytes(lambda: refused(read_csv, path)) < 8 * MiB


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,lower,upper,size\na,0,1,1\nb,0,1,1\na,2,3,1\n",
            r"line 4: expected every id once, got 'a' again, as in x.csv: line 2",
        ),
        ("id,lower,upper,size\n7,0,1,1\n07,2,3,1\n", "line 3: expected every id once, got '07' again"),
        ("id,lower,upper,size,size\n7,0,1,1,1\n", "expected the column 'size' once"),
        ("id,lower,upper,size\n" + "x" * 70_000, "expected less than 65536 characters"),
        (f"id,lower,upper,size\n{'y' * 300},0,1,1\n", "an id of at most 200 characters, got 300"),
        ("id,lower,upper,size\n1,0,1," + "9" * 6000 + "\n", r"below 2\*\*63, got '9{60}'\.\.\."),
    ],
)
def test_intervals_that_are_no_good(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(PlanningError, match=message):
        read_csv(path)


@pytest.mark.parametrize("field", ["height", "load", "method", "seconds", "proved_optimal", "schema"])
@pytest.mark.parametrize("value", [None, -1, 1e400, "x" * 999, [1], {"a": 1}])
def test_a_plan_with_a_wrong_field(tmp_path, field, value):
    path = tmp_path / "x.npz"
    meta = {"schema": 1, "height": 1, "load": 1, "method": "m", "seconds": 0.5, "proved_optimal": True}
    meta[field] = value
    text = json.dumps(meta).replace("Infinity", "1e400")
    archive(path, offsets=npy("<i8", (1,), b"\0" * 8), meta=meta_bytes(np.array(text)))
    if field == "method" and isinstance(value, str):
        assert Plan.load_file(path).method == value
        return
    with pytest.raises(PlanningError) as caught:
        Plan.load_file(path)
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", READERS)
def test_what_has_no_end_is_not_waited_for(tmp_path, name):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (
        (pipe, "a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(SmartPoolError, match=message):
            READERS[name][0](path)


def test_deep_nesting(tmp_path):
    path = tmp_path / "deep"
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"format":"x","story":' + "[" * 100_000):
        path.write_text(text)
        with pytest.raises(SmartPoolError):
            read_dump(path)
    path.write_bytes(b"\x80\x02" + b"(" * 100_000 + b".")
    with pytest.raises(SmartPoolError):
        read_any(path)


# ---------------------------------------------------------------------- the command line


def stderr_of(capsys, *arguments):
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert err.startswith("smartpool: error: ")
    assert err.count("\n") == 1
    assert "Errno" not in err
    return err


def test_missing_files_and_folders_are_told_in_words(tmp_path, capsys):
    good = tmp_path / "graph"  # whatever its name: what is in it counts
    good.write_text("id,lower,upper,size\n0,0,3,10\n")
    assert main(["plan", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["height_bytes"] == 10
    missing, nowhere = str(tmp_path / "none.csv"), str(tmp_path / "none" / "out.csv")
    assert "there is no such file" in stderr_of(capsys, "plan", missing)
    assert "this is a folder" in stderr_of(capsys, "plan", str(tmp_path))
    assert "there is no such file" in stderr_of(capsys, "convert", missing, str(tmp_path / "out.npz"))
    assert "this is a folder" in stderr_of(capsys, "convert", str(tmp_path), str(tmp_path / "out.npz"))
    for option in ("--output", "--picture"):
        assert "there is no folder" in stderr_of(capsys, "plan", str(good), option, nowhere)
        assert "this is a folder" in stderr_of(capsys, "plan", str(good), option, str(tmp_path))
    assert "there is no folder" in stderr_of(capsys, "replay", "multistream-mix", "--picture", nowhere)
    assert "there is no folder" in stderr_of(
        capsys, "convert", "multistream-mix", str(tmp_path / "no" / "x.npz")
    )


def test_a_device_is_named_where_there_are_several(tmp_path, capsys):
    log = tmp_path / "log.csv"
    log.write_text(RMM)
    target = str(tmp_path / "out.npz")
    assert "leave the device out" in stderr_of(capsys, "convert", str(log), target, "--gpu", "1")
    assert main(["convert", str(log), target]) == 0


def test_a_replay_that_was_refused_everything_has_no_fragmentation(tmp_path, capsys):
    path = tmp_path / "x.npz"
    TRACE.save(path)
    assert main(["replay", str(path), "--capacity", "1KiB", "--against", "none", "--json"]) == 3
    run = json.loads(capsys.readouterr().out)["runs"][0]
    assert (run["failed_requests"], run["fragmentation"]) == (3, None)
    picture = tmp_path / "x.html"
    assert main(["replay", str(path), "--capacity", "1KiB", "--picture", str(picture)]) == 3
    assert "nan" not in picture.read_text().lower().replace("nano", "")
