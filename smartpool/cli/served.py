"""Asking a pool that is served elsewhere for its frames, and believing nothing of what comes.

Whoever answers at an address may be no SmartPool at all, or a hostile one: an answer has bounds in size and
time, is read as a frame (`docs/live.md`) field by field, and goes nowhere else; a redirection is not
followed, since the password would go along. What is text in it is for `printable` to make harmless.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from http.client import HTTPException
from typing import Any, Final

from smartpool.errors import InvalidRequestError
from smartpool.files import explain
from smartpool.units import MiB
from smartpool.values import encodable

__all__ = ["asker", "check_frame"]

_PATIENCE_S: Final = 5.0
_LONGEST_ANSWER: Final = 16 * MiB
_LONGEST_REASON: Final = 500
_PIECE: Final = 1 << 16
_MOST: Final = 1 << 63

Question = Callable[[dict[str, Any]], dict[str, Any]]


def asker(url: str) -> Question:
    """Return what asks the server at `url` for frames."""
    headers = {"Content-Type": "application/json"}
    password = os.environ.get("SMARTPOOL_PASSWORD")
    if password:
        headers["Authorization"] = "Basic " + base64.b64encode(f":{encodable(password)}".encode()).decode()
    opener = urllib.request.build_opener(_NoRedirect)

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        try:
            request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
                url.rstrip("/") + "/frame", data=json.dumps(question).encode(), headers=headers, method="POST"
            )
            with opener.open(request, timeout=_PATIENCE_S) as answer:
                frame = json.loads(_read(answer), parse_constant=_refuse)
            check_frame(frame)
        except urllib.error.HTTPError as error:
            raise InvalidRequestError(f"{url} answered {error.code}: {_reason(error)}") from None
        except (OSError, ValueError, HTTPException, RecursionError) as error:
            raise InvalidRequestError(
                f"expected a served pool at {url}, got: {explain(getattr(error, 'reason', error))}; "
                "start one with pool.serve() or 'smartpool serve'"
            ) from None
        return {name: value for name, value in frame.items() if name != "schema"}

    return ask


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read(answer: Any) -> bytes:
    data, deadline = bytearray(), time.monotonic() + _PATIENCE_S
    while piece := answer.read1(_PIECE):
        data += piece
        if len(data) > _LONGEST_ANSWER or time.monotonic() > deadline:
            raise ValueError("an answer that does not end")
    return bytes(data)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} where JSON has a number")


def _reason(error: urllib.error.HTTPError) -> str:
    """Return the line in which our server says why not; what another server says is not for a terminal."""
    try:
        body = error.read(_LONGEST_REASON + 1).decode(errors="replace").strip()
    except (OSError, HTTPException):
        body = ""
    ours = error.headers.get_content_type() == "text/plain" and 0 < len(body) <= _LONGEST_REASON
    return body if ours and len(body.splitlines()) == 1 else "this is no SmartPool page"


# ---------------------------------------------------------------------- what a frame is


def check_frame(frame: object) -> None:
    """Raise `ValueError` unless `frame` is one, in all that `smartpool watch` shows."""
    _check(frame, _FRAME, "frame")
    assert isinstance(frame, dict)
    if not frame["device"] < len(frame["devices"]) or not frame["tiers"]:
        raise ValueError(
            "an answer that is no frame of a pool: its devices or tiers are not those it tells of"
        )
    cells = {name: base64.b64decode(frame["map"][name], validate=True) for name in _CELLS}
    if len({len(one) for one in cells.values()}) != 1 or max(cells["tier"], default=0) >= len(frame["tiers"]):
        raise ValueError("an answer that is no frame of a pool: the cells of its map do not agree")


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _size(value: object) -> bool:
    return _count(value) and value != 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -_MOST < value < _MOST


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _text(value: object) -> bool:
    return type(value) is str


def _truth(value: object) -> bool:
    return type(value) is bool


_CELLS: Final = ("tier", "live", "cached", "planned")
_FRAME: Final[dict[str, Any]] = {
    "time": _number,
    "devices": [_text],
    "device": _count,
    "closed": _truth,
    "figures": {
        **dict.fromkeys(
            ("live_bytes", "reserved_bytes", "peak_live_bytes", "peak_reserved_bytes", "largest_free_bytes"),
            _count,
        ),
        "device_free_bytes": _count,
        "device_total_bytes": _size,
        "fragmentation": dict.fromkeys(("overall", "interval_graph", "pool", "gpu"), _share),
        "counters": dict.fromkeys(("searches", "driver_calls", "step_hits"), _count),
    },
    "tiers": [{"name": _text, "live_blocks": _count, "live_bytes": _count, "cached_bytes": _count}],
    "holders": [{"label": _text, "blocks": _count, "bytes": _count}],
    "map": {"extent_bytes": _count, "chunks": _count, **dict.fromkeys(_CELLS, _text)},
}
"""What is read of a frame; more may be in it."""


def _check(value: Any, expected: Any, where: str) -> None:
    parts: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(expected, dict):
        good = isinstance(value, dict) and expected.keys() <= value.keys()
        if good:
            parts = ((f"{where}.{name}", value[name], one) for name, one in expected.items())
    elif isinstance(expected, list):
        good = isinstance(value, list)
        if good:
            parts = ((f"{where}[{number}]", one, expected[0]) for number, one in enumerate(value))
    else:
        good = expected(value)
    if not good:
        both = isinstance(expected, dict) and isinstance(value, dict)
        lacks = sorted(expected.keys() - value.keys()) if both else []
        what = f"has no {lacks[0]}" if lacks else "is not what it must be"
        raise ValueError(f"an answer that is no frame of a pool: {where} {what}")
    for part in parts:
        _check(part[1], part[2], part[0])
