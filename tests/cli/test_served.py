"""Frames of a stranger: whatever comes is shown as text that prints, or refused in one line."""

from __future__ import annotations

import copy
import io
import json
import re
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smartpool
from smartpool.cli import main
from smartpool.cli.served import check_frame
from smartpool.cli.terminal import TerminalView
from smartpool.live.view import LiveView
from smartpool.units import MiB

rich_console = pytest.importorskip("rich.console")
QUESTION = {"device": 0, "first": 0, "last": None, "after": 0}
ODD_TEXT = st.text(max_size=12) | st.sampled_from(
    [
        "\x1b]0;pwned\x07\x1b[2J",
        "[/x]",
        "[bold red]",
        "[link=http://evil]",
        "\r\n",
        "\u202e",
        "\udce9",
        "\x9b31m",
        "",
    ]
)
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), ODD_TEXT, st.lists(st.integers(), max_size=3),
    st.sampled_from([{}, 0, -1, 1 << 63, 10**400, float("nan"), float("inf"), "AAAA", "====", [[]]]),
)  # fmt: skip


def frame(cells=64):
    """Return a frame of a pool in which all is not nothing."""
    with smartpool.SmartPool("model:8GiB", smartpool.SmartPoolConfig(track=True)) as pool:
        with pool.tag("weights"):
            for nbytes in (5000, 48 * MiB, 300 * MiB):
                pool.malloc(nbytes)
        pool.free(pool.malloc(3 * MiB))
        return LiveView(pool).frame({**QUESTION, "cells": cells})


GOOD = json.loads(json.dumps(frame()))


def places(value, path=()):
    """Yield the path to every part of a frame."""
    yield path
    for key, one in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(one, (*path, key))


PLACES = [path for path in places(GOOD) if path]


def changed(path, value):
    made = copy.deepcopy(GOOD)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


def drawn(one, **options):
    """Return a frame as it comes out of a terminal."""
    file = io.StringIO()
    console = rich_console.Console(file=file, legacy_windows=False, **{"width": 100, **options})
    console.print(TerminalView(console).take(one))
    return file.getvalue()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), ODD | ODD_TEXT)
def test_one_odd_part_is_refused_or_shown(path, value):
    strange = changed(path, value)
    try:
        check_frame(strange)
    except ValueError:
        return
    shown = drawn(strange)
    assert all(character.isprintable() or character == "\n" for character in shown)
    shown.encode()


@pytest.mark.parametrize("path", PLACES)
def test_one_missing_part_is_refused_or_not_needed(path):
    made = changed(path, None)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    try:
        check_frame(made)
    except ValueError:
        return
    drawn(made)


@pytest.mark.parametrize(
    "text", ["\x1b]0;pwned\x07\x1b[2J", "[/x]", "[red]bare[/]", "[link=http://x]y[/link]"]
)
@pytest.mark.parametrize("path", [("devices", 0), ("tiers", 0, "name"), ("holders", 0, "label")])
def test_names_are_text_and_steer_nothing(path, text):
    shown = drawn(changed(path, text), force_terminal=True, color_system="truecolor")
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    visible = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert (
        text.replace("\x1b", "\N{REPLACEMENT CHARACTER}").replace("\x07", "\N{REPLACEMENT CHARACTER}")
        in visible
    )


FIGURE = re.compile(r"\d[\d.,]* (?:B|KiB|MiB|GiB)\b")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 90, 120, 200])
def test_no_digit_is_cut_whatever_the_width(width):
    made = copy.deepcopy(GOOD)
    made["holders"][0]["label"] = "a name that is longer than most screens are wide, and then some"
    made["figures"] |= {"live_bytes": 1 << 62, "reserved_bytes": 123456789, "device_total_bytes": 1 << 62}
    lines = drawn(made, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if re.search(r"\d…", line)]
    shown = FIGURE.findall("\n".join(lines))
    wide = FIGURE.findall(drawn(made, width=200))
    assert set(shown) <= set(wide)
    text = " ".join(lines)
    for figure in ("live", "reserved", "fragmentation", "device", "largest free", "118 MiB", "4 EiB"):
        assert figure in text, figure


def test_without_colors_the_map_tells_live_from_free():
    """NO_COLOR in a terminal as well: there half blocks without colors would all be alike."""
    plain = drawn(GOOD)
    gray = drawn(GOOD, force_terminal=True, no_color=True, color_system="standard")
    for shown in (plain, gray):
        assert "▀" not in shown
        assert "@" in shown
    assert "▀" in drawn(GOOD, force_terminal=True, color_system="truecolor")


def test_what_is_no_terminal_gets_the_last_frame_with_an_end(capsys):
    arguments = ["watch", "dataframe-mix", "--device", "model:8GiB", "--rate", "50000"]
    assert main([*arguments, "--frames", "2", "--every", "0"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("\n")
    assert shown.count("SmartPool on model:8GiB") == 1


def test_the_first_frame_of_a_played_trace_shows_something(capsys):
    arguments = ["watch", "dataframe-mix", "--device", "model:8GiB", "--rate", "5000", "--json"]
    assert main([*arguments, "--frames", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["reserved_bytes"] > 0


# ------------------------------------------------------------------ servers


class Stranger:
    """Answers every connection with some bytes, and goes on as it is told."""

    def __init__(self, answer, goes_on=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.asked = []
        self._answer, self._goes_on = answer, goes_on
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join()

    def _serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self.asked.append(connection.recv(1 << 16))
                    connection.sendall(self._answer)
                    if self._goes_on:
                        while True:
                            connection.sendall(self._goes_on)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):  # who closes with something unread takes it back
                        pass
                except OSError:  # nobody listens any more
                    pass


def ok(body, length=None):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body) if length is None else length,
        body,
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "got: "),
        (b"\x00" * 100, "got: "),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", "got: "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "got: "),
        (ok(b"{}", 100), "no frame"),
        (ok(b"[" * 200_000), "got: "),
        (ok(b"\xff\xfe"), "got: "),
        (ok(json.dumps(changed(("figures", "live_bytes"), float("nan"))).encode()), "NaN where JSON"),
        (ok(b'{"figures": {}, "map": {}}'), "frame has no closed"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "answered 302"),
        (b"HTTP/1.1 307 Gone\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "answered 307"),
    ],
)
def test_odd_servers_are_one_line(answer, said, capsys):
    with Stranger(answer) as stranger:
        assert main(["watch", stranger.url, "--frames", "1"]) == 2
        assert len(stranger.asked) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_an_answer_that_does_not_end(capsys, monkeypatch):
    monkeypatch.setattr("smartpool.cli.served._LONGEST_ANSWER", 100_000)
    with Stranger(b"HTTP/1.1 200 OK\r\n\r\n", goes_on=b" " * 1000) as stranger:
        assert main(["watch", stranger.url, "--frames", "1"]) == 2
    assert "does not end" in capsys.readouterr().err


def test_an_answer_that_drips(capsys, monkeypatch):
    monkeypatch.setattr("smartpool.cli.served._PATIENCE_S", 0.3)
    with Stranger(b"HTTP/1.1 200 OK\r\n\r\n", goes_on=b" ") as stranger:
        assert main(["watch", stranger.url, "--frames", "1"]) == 2
    assert "does not end" in capsys.readouterr().err


def test_a_frame_of_a_stranger_cannot_claim_another_schema(capsys):
    with Stranger(ok(json.dumps({**GOOD, "schema": "evil", "more": 1}).encode())) as stranger:
        assert main(["watch", stranger.url, "--frames", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["more"]) == (1, 1)
