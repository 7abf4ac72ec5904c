"""``smartpool watch`` and ``smartpool serve``: frames of a served pool and of a played trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

import smartpool
from smartpool.cli import main
from smartpool.units import MiB


def test_watch_shows_a_served_pool(capsys):
    pytest.importorskip("rich")
    with smartpool.SmartPool("model:8GiB") as pool, pool.serve() as server:
        held = pool.malloc(48 * MiB)
        assert main(["watch", server.url, "--frames", "2", "--every", "0.01"]) == 0
        shown = capsys.readouterr().out
        pool.free(held)
    assert "model:8GiB" in shown
    assert "48 MiB" in shown
    assert "large" in shown
    assert "@@@@" in shown  # the map, without colours


def test_watch_plays_a_trace_and_prints_json(capsys):
    pytest.importorskip("rich")
    arguments = ["watch", "dataframe-mix", "--device", "model:8GiB", "--rate", "50000", "--json"]
    assert main([*arguments, "--frames", "3", "--every", "0.05"]) == 0
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(frames) == 3
    assert frames[-1]["figures"]["reserved_bytes"] > 0


def test_watch_asks_with_the_password(capsys, monkeypatch):
    pytest.importorskip("rich")
    with smartpool.SmartPool("model:8GiB") as pool, pool.serve(password="sesame") as server:
        assert main(["watch", server.url, "--frames", "1"]) == 2
        assert "401" in capsys.readouterr().err
        monkeypatch.setenv("SMARTPOOL_PASSWORD", "sesame")
        assert main(["watch", server.url, "--frames", "1", "--json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["watch", "http://127.0.0.1:9/"], "pool.serve()"),
        (["watch", "no-such-trace"], "no such file"),
        (["watch", "llama-train", "--rate", "0"], "--rate"),
        (["serve", "no-such-trace"], "no such file"),
        (["serve", "--port", "70000"], "65535"),
    ],
)
def test_what_cannot_be_watched_is_one_clear_error(arguments, said, capsys):
    pytest.importorskip("rich")
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_serve_serves_until_it_is_interrupted():
    command = [sys.executable, "-m", "smartpool", "serve", "dataframe-mix", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as running:
        line = running.stderr.readline()
        url = line.split(": ")[1].split()[0]
        with urllib.request.urlopen(url, timeout=20) as page:
            assert b"SmartPool" in page.read()
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
        assert running.stderr.read() == "smartpool: interrupted\n"
