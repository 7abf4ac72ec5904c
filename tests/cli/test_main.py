"""The way in and the way out: arguments, exit statuses, what goes where."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from waiting import PATIENCE_S

import smartpool
from smartpool.cli import info, main
from smartpool.errors import DeviceNotFoundError, OutOfMemoryError, RequestTooLargeError


def command(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "smartpool", *arguments],
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        **more,
    )


@pytest.fixture
def failing(monkeypatch):
    """Make ``smartpool info`` raise what the test says."""

    def make(error):
        def run(_args):
            raise error

        monkeypatch.setattr(info, "run", run)

    return make


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"smartpool {smartpool.__version__}\n"


@pytest.mark.parametrize("name", ["demo", "replay", "plan", "convert", "info"])
def test_help_of_every_command_is_known_and_says_something(capsys, name):
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: smartpool {name}")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert f"\n    {name} " in out
    assert "examples:" in out
    assert "141" in out


def test_no_command_is_a_usage_error_that_shows_the_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: smartpool" in err


@pytest.mark.parametrize("arguments", [["nonsense"], ["info", "--nonsense"], ["convert"]])
def test_unusable_arguments_are_status_2(capsys, arguments):
    assert main(arguments) == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeviceNotFoundError("no device 'x'"), 2),
        (FileNotFoundError(2, "No such file or directory", "x.npz"), 2),
        (OutOfMemoryError("no room"), 3),
        (RequestTooLargeError("too large"), 3),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_errors_have_their_status(failing, capsys, error, status):
    failing(error)
    assert main(["info"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == (0 if status == 141 else 1)


def test_an_error_is_one_line_that_steers_no_terminal(failing, capsys):
    failing(DeviceNotFoundError("no device\n'\x1b[2Jx'"))
    main(["info"])
    assert capsys.readouterr().err == "smartpool: error: no device '\N{REPLACEMENT CHARACTER}[2Jx'\n"


def test_a_bug_is_not_hidden(failing):
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_the_module_is_the_command():
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"smartpool {smartpool.__version__}\n", "")


NO_RICH = (
    "import sys; sys.modules['rich'] = None; from smartpool.cli import main; sys.exit(main(sys.argv[1:]))"
)


def without_rich(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", NO_RICH, *arguments],
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=cwd,
    )


@pytest.mark.parametrize("arguments", [["info"], ["demo"], ["replay", "multistream-mix"]])
def test_without_rich_a_table_is_refused_with_the_way_out(arguments, tmp_path):
    done = without_rich(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("smartpool: error: tables need the package 'rich' of the extra 'cli'")
    assert "run: pip install rich (" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_rich_json_works(tmp_path):
    done = without_rich("info", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["smartpool"] == smartpool.__version__


def test_without_rich_frames_are_printed_too(tmp_path):
    done = without_rich("watch", "dataframe-mix", "--json", "--frames", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1


def test_replay_draws_its_picture(tmp_path, capsys):
    picture = tmp_path / "memory.html"
    assert main(["replay", "multistream-mix", "--against", "cupy", "--json", "--picture", str(picture)]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    assert "multistream-mix" in picture.read_text(encoding="utf-8")
