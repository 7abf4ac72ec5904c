"""Stream capture, played: what a host driver records instead of doing, and what it refuses meanwhile.

The rules are CUDA's in its global mode, as far as a pool meets them. Between `begin` and `end` the work
queued on the captured stream is kept and not done; `PlayedGraph.replay` does it, as often as one likes, on
the addresses that were captured. Beside a capture, `allocate`, `free`, questions about events and every
wait of the host are refused on all threads but those that asked for leave (`beside_capture`), and a
refusal ruins the capture: its end raises. An event that was recorded on the captured stream has no
state, and the captured stream cannot wait for work outside. One stream is captured at a time, and the
capture does not spread to others by events, as it does on CUDA.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from smartpool.driver.protocol import refusal
from smartpool.driver.queues import Queues
from smartpool.errors import DriverError

__all__ = ["PlayedCaptures", "PlayedGraph"]

_FORBIDDEN: Final = frozenset(
    ("allocate", "free", "event_done", "synchronize", "synchronize_event", "read", "write")
)


class PlayedGraph:
    """Work that was captured.

    Parameters
    ----------
    work
        In order.
    submit
        Queues a piece of work on a stream.
    """

    def __init__(
        self, work: list[Callable[[], None]], submit: Callable[[int, list[Callable[[], None]]], None]
    ) -> None:
        self._work = work
        self._submit = submit

    def replay(self, stream: int = 0) -> None:
        """Queue the work on `stream`. Memory that has gone meanwhile loses the device, as on CUDA."""
        self._submit(stream, self._work)


class PlayedCaptures:
    """The capture of one host driver. The driver's lock guards it.

    Parameters
    ----------
    queues
        The driver's streams.

    Attributes
    ----------
    stream
        What is being captured, or None.
    number
        How many captures have begun.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._leave = threading.local()
        self._events: set[int] = set()  # recorded on the captured stream
        self._ruined: str | None = None
        self.stream: int | None = None
        self.number = 0

    def begin(self, stream: int) -> None:
        """Keep what is queued on `stream` from now on."""
        if self.stream is not None:
            raise refusal("begin_capture", f"stream {self.stream} is being captured", stream=stream)
        if stream == 0 or not self._queues.is_idle(stream):
            raise refusal("begin_capture", "expected a stream of its own with nothing pending", stream=stream)
        self._queues.pause(stream)
        self.stream, self._ruined = stream, None
        self.number += 1
        self._events.clear()

    def end(self, stream: int) -> list[Callable[[], None]]:
        """Return what was captured; raises when something ruined the capture."""
        if stream != self.stream:
            raise refusal("end_capture", "that stream is not being captured", stream=stream)
        work = self._queues.take_pending(stream)
        self._queues.resume(stream)
        self.stream = None
        if self._ruined is not None:
            raise DriverError(
                "end_capture",
                "STREAM_CAPTURE_INVALIDATED",
                {"stream": stream},
                advice=f"a call that is not allowed beside a capture ruined it: {self._ruined}",
            )
        return work

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Let this thread make calls that the capture would forbid."""
        before = getattr(self._leave, "given", False)
        self._leave.given = True
        try:
            yield
        finally:
            self._leave.given = before

    def guard(self, call: str, arguments: Mapping[str, object]) -> None:
        """Refuse a call that ruins the capture, and remember which events belong to it."""
        if self.stream is None:
            return
        if call in _FORBIDDEN and not getattr(self._leave, "given", False):
            raise self._ruin(call, arguments, "STREAM_CAPTURE_UNSUPPORTED")
        if call == "synchronize" and arguments.get("stream") == self.stream:
            raise self._ruin(call, arguments, "STREAM_CAPTURE_UNSUPPORTED")
        event = arguments.get("event")
        if call == "record_event":
            (self._events.add if arguments["stream"] == self.stream else self._events.discard)(event)  # type: ignore[arg-type]
        elif event in self._events and call != "destroy_event":
            if call != "wait_event" or arguments["stream"] != self.stream:
                raise self._ruin(call, arguments, "CAPTURED_EVENT")
        elif call == "wait_event" and arguments["stream"] == self.stream:
            raise self._ruin(call, arguments, "STREAM_CAPTURE_ISOLATION")

    def _ruin(self, call: str, arguments: Mapping[str, object], code: str) -> DriverError:
        self._ruined = self._ruined or call
        return DriverError(
            call, code, arguments, advice="a stream is being captured, and the call is not allowed meanwhile"
        )
