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
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, Final

from smartpool.errors import InvalidRequestError
from smartpool.files import explain
from smartpool.json_shapes import COUNT, TEXT, Kind, checked
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


def check_frame(frame: Any) -> None:
    """Raise `ValueError` unless `frame` is one, in all that `smartpool watch` shows."""
    try:
        checked(frame, _FRAME, "frame")
    except ValueError as error:
        raise ValueError(f"an answer that is no frame of a pool: {error}") from None
    if not frame["device"] < len(frame["devices"]) or not frame["tiers"]:
        raise ValueError(
            "an answer that is no frame of a pool: its devices or tiers are not those it tells of"
        )
    cells = {name: base64.b64decode(frame["map"][name], validate=True) for name in _CELLS}
    beyond = max(cells["tier"], default=0) >= len(frame["tiers"])
    if beyond or len({len(one) for one in cells.values()}) != 1:
        raise ValueError("an answer that is no frame of a pool: the cells of its map do not agree")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_MOST < value < _MOST


_NUMBER: Final = Kind(_is_number, "a number")
_SHARE: Final = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a share from 0 to 1")
_SIZE: Final = Kind(lambda value: COUNT.good(value) and value != 0, "a number of bytes above 0")
_CELLS: Final = ("tier", "live", "cached", "planned")
_FRAME: Final[dict[str, Any]] = {
    "time": _NUMBER,
    "devices": [TEXT],
    "device": COUNT,
    "closed": Kind(lambda value: type(value) is bool, "true or false"),
    "figures": {
        **dict.fromkeys(
            ("live_bytes", "reserved_bytes", "peak_live_bytes", "peak_reserved_bytes", "largest_free_bytes"),
            COUNT,
        ),
        "device_free_bytes": COUNT,
        "device_total_bytes": _SIZE,
        "fragmentation": dict.fromkeys(("overall", "interval_graph", "pool", "gpu"), _SHARE),
        "counters": dict.fromkeys(("searches", "driver_calls", "step_hits"), COUNT),
    },
    "tiers": [{"name": TEXT, "live_blocks": COUNT, "live_bytes": COUNT, "cached_bytes": COUNT}],
    "holders": [{"label": TEXT, "blocks": COUNT, "bytes": COUNT}],
    "map": {"extent_bytes": COUNT, "chunks": COUNT, **dict.fromkeys(_CELLS, TEXT)},
}
"""What is read of a frame; more may be in it."""
