"""``smartpool completion``: the script knows every command, and the shell takes it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from waiting import PATIENCE_S

from smartpool.cli import main

pytest.importorskip("shtab")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_script_knows_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in ("demo", "replay", "plan", "convert", "watch", "serve", "info", "completion"):
        assert command in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_a_command(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = "COMP_WORDS=(smartpool rep); COMP_CWORD=1; _shtab_smartpool; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert "replay" in done.stdout.split()


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    assert "bash" in capsys.readouterr().err


def test_without_shtab_the_error_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err.endswith("run: pip install shtab\n")
