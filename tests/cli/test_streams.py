"""Standard input and output as files, and as they fail: readers that go away, full disks, closed streams."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import pytest
from waiting import PATIENCE_S

from smartpool.cli import main
from smartpool.trace import Trace

COMMAND = [sys.executable, "-m", "smartpool"]
INTERVALS = b"id,lower,upper,size\nx,0,5,8\ny,5,9,8\n"
EVENTS = b"op,id,size\nallocate,0,4096\nfree,0,4096\n"

# Every command that prints, each in the ways that it prints.
PRINTERS = [
    ["--help"],
    ["info"],
    ["replay", "multistream-mix", "--against", "none"],
    ["demo", "--trace", "multistream-mix", "--output", "demo.html"],
    ["report", "multistream-mix", "--against", "none", "--output", "report.html"],
    ["report", "multistream-mix", "--against", "none", "--output", "-"],
    ["plan", "multistream-mix", "--json"],
    ["convert", "multistream-mix", "-", "--to", "csv"],
    ["watch", "multistream-mix", "--frames", "1"],
    ["watch", "multistream-mix", "--frames", "1", "--json"],
]


def run(arguments, cwd, **streams):
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, timeout=PATIENCE_S, check=False, **streams
    )


def in_shell(tail, arguments, cwd):
    """Run a command whose last words are a shell's, as ``>&-``."""
    words = " ".join(f"'{word}'" for word in [*COMMAND, *arguments])
    return subprocess.run(
        ["sh", "-c", f"{words} {tail}"], cwd=cwd, capture_output=True, timeout=PATIENCE_S, check=False
    )


@pytest.mark.parametrize("arguments", PRINTERS, ids=" ".join)
def test_a_reader_that_goes_away_is_status_141_and_no_word(arguments, tmp_path):
    """As in ``smartpool replay ... | head -1``: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(arguments, tmp_path, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")  # noqa: PTH110
@pytest.mark.parametrize("arguments", PRINTERS[::3], ids=" ".join)
def test_an_output_without_room_is_status_2_and_one_line(arguments, tmp_path):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = run(arguments, tmp_path, stdout=full)
    said = done.stderr.decode()
    assert done.returncode == 2
    assert said.startswith("smartpool: error: standard output cannot be written: No space left on device")
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", PRINTERS[1::3], ids=" ".join)
def test_a_closed_output_is_status_2_and_one_line(arguments, tmp_path):
    done = in_shell(">&-", arguments, tmp_path)
    said = done.stderr.decode()
    assert done.returncode == 2
    assert said.startswith("smartpool: error: standard output cannot be written")
    assert said.count("\n") == 1


@pytest.mark.parametrize("tail", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--version"], 0), (["nonsense"], 2), (["replay", "nowhere"], 2)],
    ids=str,
)
def test_the_status_is_right_where_nobody_can_be_told(arguments, status, tail, tmp_path):
    done = in_shell(tail, arguments, tmp_path)
    assert done.returncode == status
    assert done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")  # noqa: PTH110
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["report", "multistream-mix", "--against", "none", "-o", "full.html"], "full.html"),
        (["replay", "multistream-mix", "--against", "none", "--picture", "full.html"], "full.html"),
        (["convert", "multistream-mix", "full.csv"], "full.csv"),
        (["plan", "multistream-mix", "-o", "full.csv"], "full.csv"),
    ],
)
def test_a_full_disk_is_told_with_the_name_of_the_file(arguments, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).symlink_to("/dev/full")
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"smartpool: error: {name}: No space left on device\n"


# ---------------------------------------------------------------------- the name -


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_standard_input_is_a_file_like_every_other(name, packed, tmp_path):
    intervals, events = (gzip.compress(data) if packed else data for data in (INTERVALS, EVENTS))
    done = run(["plan", name, "--json"], tmp_path, stdin=None, input=intervals)
    told = json.loads(done.stdout)
    assert (told["instance"], told["intervals"], told["height_bytes"]) == ("standard-input", 2, 8)
    done = run(["replay", name, "--against", "none", "--json"], tmp_path, stdin=None, input=events)
    assert json.loads(done.stdout)["runs"][0]["peak_live_bytes"] == 4096
    done = run(["report", name, "--against", "none", "--json"], tmp_path, stdin=None, input=events)
    assert json.loads(done.stdout)["path"] == "standard-input.html"
    assert (tmp_path / "standard-input.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_pipe_of_the_shell_is_read(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, INTERVALS)
    os.close(writing)
    try:
        done = run(["plan", f"/dev/fd/{reading}"], tmp_path, pass_fds=[reading])
    finally:
        os.close(reading)
    assert b"2 intervals" in done.stdout


def test_commands_are_put_one_behind_the_other(tmp_path):
    first = run(["convert", "-", "-", "--to", "torch"], tmp_path, stdin=None, input=EVENTS)
    assert b"standard-input" not in first.stdout
    assert first.stderr == b"-: 2 events, 1 allocation, 1 stream, peak live 4.00 KiB\n"
    second = run(["convert", "-", "out.npz"], tmp_path, stdin=None, input=first.stdout)
    assert second.returncode == 0
    assert Trace.load(tmp_path / "out.npz").size.tolist() == [4096, 4096]
    placed = run(["plan", "-", "--output", "-"], tmp_path, stdin=None, input=INTERVALS)
    assert placed.stdout.startswith(b"id,lower,upper,size,offset\nx,0,5,8,0\n")
    assert b"optimal" in placed.stderr
    page = run(["report", "-", "-o", "-", "--against", "none"], tmp_path, stdin=None, input=EVENTS)
    assert page.stdout.startswith(b"<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["convert", "multistream-mix", "-"], "-: expected a file name that ends in .npz"),
        (["convert", "multistream-mix", "-", "--to", "csv", "--json"], "as --json goes to standard output"),
        (["report", "multistream-mix", "-o", "-", "--json"], "as --json goes to standard output"),
        (["plan", "multistream-mix", "-o", "-", "--json"], "as --json goes to standard output"),
        (["replay", "multistream-mix", "--picture", "-"], "as the table goes to standard output"),
        (["demo", "-o", "-"], "as the table goes to standard output"),
        (["plan", "multistream-mix", "-o", "-", "--picture", "-"], "as the plan goes to standard output"),
    ],
)
def test_one_output_has_room_for_one_result(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_closed_input_is_one_line(tmp_path):
    done = in_shell("<&-", ["replay", "-"], tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"-: expected something to read" in done.stderr


# ---------------------------------------------------------------------- what is printed


def test_names_that_the_locale_cannot_write_are_written_somehow(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    if "PYTHONPATH" in os.environ:
        ascii_only["PYTHONPATH"] = os.environ["PYTHONPATH"]
    name = "größe-日.csv"
    for arguments in (["convert", "multistream-mix", name], ["plan", "multistream-mix", "-o", name]):
        done = run(arguments, tmp_path, env=ascii_only)
        assert (done.returncode, done.stderr) == (0, b"")
        done.stdout.decode("ascii")
    assert (tmp_path / name).read_text().startswith("id,")
    done = run(["replay", name, "--against", "none"], tmp_path, env=ascii_only)
    assert b"got intervals as CSV, which are for 'smartpool plan'" in done.stderr


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path):
    """A signal is raised where the interpreter happens to be: for the first tenth of a second, in imports."""
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == sys.argv[1]: raise KeyboardInterrupt\n"
        "import smartpool.cli\n"
        "assert not {'numpy', 'rich', 'json'} & sys.modules.keys(), 'what takes long is imported later'\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.exit(smartpool.cli.main(['info', '--json']))\n"
    )
    for module in ("numpy", "smartpool.cli.completion", "smartpool.driver.cpu", "smartpool.trace.replay"):
        done = subprocess.run(
            [sys.executable, "-c", code, module],
            cwd=tmp_path,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (module, done.returncode, done.stderr) == (module, 130, b"smartpool: interrupted\n")
