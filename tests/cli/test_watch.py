"""``smartpool watch`` and ``smartpool serve``: frames of a served pool and of a played trace."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

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
    assert "@@@@" in shown  # the map, without colors


def test_watch_plays_a_trace_and_prints_json(capsys):
    pytest.importorskip("rich")
    arguments = ["watch", "dataframe-mix", "--device", "model:8GiB", "--rate", "50000", "--json"]
    assert main([*arguments, "--frames", "3", "--every", "0.05"]) == 0
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(frames) == 3
    assert [frame["schema"] for frame in frames] == [1, 1, 1]
    assert frames[-1]["figures"]["reserved_bytes"] > 0


def test_watch_asks_with_the_password(capsys, monkeypatch):
    pytest.importorskip("rich")
    with smartpool.SmartPool("model:8GiB") as pool, pool.serve(password="sesame") as server:
        assert main(["watch", server.url, "--frames", "1"]) == 2
        told = capsys.readouterr().err
        assert "answered 401: " in told
        assert "no SmartPool page" not in told  # ours says why
        monkeypatch.setenv("SMARTPOOL_PASSWORD", "sesame")
        assert main(["watch", server.url, "--frames", "1", "--json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["watch", "http://127.0.0.1:9/"], "pool.serve()"),
        (["watch", "no-such-trace"], "no such file"),
        (["watch", "llama-train", "--rate", "0"], "--rate"),
        (["watch", "llama-train", "--frames", "0"], "--frames: expected a number of frames above 0, got 0"),
        (["watch", "llama-train", "--frames", "-1"], "--frames: expected a number of frames above 0, got -1"),
        (["watch", "http://127.0.0.1:9/", "--frames", "0"], "--frames"),
        (["watch", "llama-train", "--every", "-1"], "--every: expected seconds from 0 to 86400, got -1"),
        (["watch", "llama-train", "--every", "nan"], "--every"),
        (["watch", "llama-train", "--every", "1e308"], "--every: expected seconds from 0 to 86400"),
        (["watch", "llama-train", "--rate", "nan"], "--rate"),
        (["watch", "llama-train", "--rate", "inf"], "--rate"),
        (["watch", "http://[::1", "--frames", "1"], "expected a served pool"),
        (["serve", "dataframe-mix", "--port", "0", "--host", "203.0.113.1"], "choose a host of this machine"),
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


class Foreign(BaseHTTPRequestHandler):
    """A server of somebody else: answers every question with what the test says."""

    def do_POST(self):
        status, kind, body = self.server.answer
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def foreign():
    with HTTPServer(("127.0.0.1", 0), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((501, "text/html", b"<html>Unsupported</html>"), "answered 501: this is no SmartPool page"),
        ((404, "text/plain", b"two\nlines"), "answered 404: this is no SmartPool page"),
        ((404, "text/plain", b"x" * 5000), "answered 404: this is no SmartPool page"),
        ((404, "text/plain", b""), "answered 404: this is no SmartPool page"),
        (
            (403, "text/plain; charset=utf-8", b"only the page may ask\n"),
            "answered 403: only the page may ask",
        ),
        ((200, "text/html", b"<html>"), "expected a served pool"),
        ((200, "application/json", b"[]"), "expected a served pool"),
        ((200, "application/json", b"{}"), "no frame of a pool"),
    ],
)
def test_a_server_that_is_not_ours_is_told_without_its_page(foreign, capsys, answer, said):
    foreign.answer = answer
    url = f"http://127.0.0.1:{foreign.server_port}"
    assert main(["watch", url, "--frames", "1", "--json"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert "<html>" not in told
    assert len(told) < 300
