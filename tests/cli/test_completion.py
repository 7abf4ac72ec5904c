"""``smartpool completion``: the script knows every command, and the shell takes it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from waiting import PATIENCE_S

from smartpool.cli import main

pytest.importorskip("shtab")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_the_script_knows_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in ("demo", "replay", "plan", "convert", "watch", "serve", "info", "completion"):
        assert command in script
    assert "pytorch-expandable" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("rep", "replay report"),
        ("replay data", "data.npz dataframe-mix"),
        ("replay x --against pyt", "pytorch pytorch-expandable pytorch-max-split-128 pytorch-roundup-8"),
        ("replay x --policy ti", "tight"),
        ("watch llama", "llama-train"),
        ("plan dat", "data.npz dataframe-mix"),
        ("plan x --output da", "data.npz dataframe-mix"),
        ("convert --to to", "torch"),
    ],
)
def test_bash_completes_commands_and_values(tmp_path, capsys, words, completed):
    (tmp_path / "data.npz").touch()
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    count = len(words.split())
    asked = f"COMP_WORDS=(smartpool {words}); COMP_CWORD={count}; _shtab_smartpool; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asked}"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert sorted(set(done.stdout.split())) == completed.split()


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "nonsense"]) == 2
    assert "bash" in capsys.readouterr().err


def test_without_shtab_the_error_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err.endswith("run: pip install shtab\n")
