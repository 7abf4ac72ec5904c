from __future__ import annotations

import json
from pathlib import Path

import pytest

from smartpool.cli import main
from smartpool.trace import Trace, read_any

INPUTS = Path(__file__).parents[1] / "data" / "inputs"


@pytest.mark.parametrize("source", sorted(INPUTS.iterdir()), ids=lambda path: path.name)
def test_every_input_becomes_the_trace_that_the_importer_reads(source, tmp_path, capsys):
    target = tmp_path / "out.npz"
    assert main(["convert", str(source), str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    trace = Trace.load(target)
    assert trace == read_any(source)
    assert told == {
        "schema": 1,
        "path": str(target),
        "format": "npz",
        "trace": trace.name,
        "events": trace.events,
        "allocations": trace.allocations,
        "streams": trace.streams,
        "peak_live_bytes": trace.peak_live_bytes,
    }


def test_a_line_for_people(tmp_path, capsys):
    Trace.from_columns("t", op=[0, 1], id=[0, 0], size=[3 << 20, 3 << 20]).save(tmp_path / "in.npz")
    assert main(["convert", str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]) == 0
    assert capsys.readouterr().out.endswith("out.npz: 2 events, 1 allocation, 1 stream, peak live 3.00 MiB\n")


@pytest.mark.parametrize(
    ("content", "target", "expected"),
    [
        (b"nonsense", "out.npz", "expected a SmartPool trace"),
        (b"\x80\x04cos\nsystem\n.", "out.npz", "in.bin"),
        (b"", "out.txt", "out.txt: expected a file name that ends in .npz"),
        (None, "out.npz", "there is no such file"),
        (b"", "out.npz", "got an empty file"),
        (b"id,lower,upper,size\n", "out.npz", "which are for 'smartpool plan'"),
        (b"op,id,size\nresize,0,8\n", "out.npz", "line 2: expected 'op' to be 0 or allocate, or 1 or free"),
    ],
)
def test_unusable_files_are_one_line_and_leave_nothing(tmp_path, capsys, content, target, expected):
    source = tmp_path / "in.bin"
    if content is not None:
        source.write_bytes(content)
    assert main(["convert", str(source), str(tmp_path / target)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("smartpool: error: ")
    assert expected in err
    assert not (tmp_path / target).exists()


@pytest.mark.parametrize("suffix", [".npz", ".pickle", ".csv"])
def test_what_is_written_can_be_read_again(tmp_path, capsys, suffix):
    source, first, second = tmp_path / "in.npz", tmp_path / f"a{suffix}", tmp_path / "b.npz"
    Trace.from_columns("t", op=[0, 1], id=[0, 0], size=[3 << 20, 3 << 20]).save(source)
    assert main(["convert", str(source), str(first)]) == 0
    assert main(["convert", str(first), str(second)]) == 0
    capsys.readouterr()
    trace = Trace.load(second)
    assert (trace.op.tolist(), trace.size.tolist()) == ([0, 1], [3 << 20, 3 << 20])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--gpu=0", "expected a PyTorch snapshot where a device is named"),
        ("--drop-unknown-frees", "expected an RMM log where unknown frees are to be dropped"),
    ],
)
def test_an_option_that_a_trace_has_no_use_for_is_refused(tmp_path, capsys, option, said):
    assert main(["convert", "multistream-mix", str(tmp_path / "out.npz"), option]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_format_by_name(tmp_path, capsys):
    source, target = tmp_path / "in.npz", tmp_path / "out.txt"
    Trace.from_columns("t", op=[0], id=[0], size=[8]).save(source)
    assert main(["convert", str(source), str(target), "--to", "chrome"]) == 0
    capsys.readouterr()
    assert json.loads(target.read_text())["otherData"]["trace"] == "t"
