"""Scripted failures: make any call of a host driver fail, at will and repeatably.

A fault fires before the call has any effect, so a failed call changes nothing; only a *sticky*
fault leaves the device lost, as a real one does after an illegal access: every later call then
fails with the same code. While nothing is armed a call pays for one attribute test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from smartpool.errors import DriverError, DriverOutOfMemoryError, InvalidRequestError

__all__ = ["CALLS", "Fault", "Faults"]

# fmt: off
CALLS: Final = frozenset((
    "memory_info", "allocate", "free",
    "reserve", "unreserve", "create_chunk", "release_chunk", "map_chunk", "enable_access", "unmap",
    "export_chunk", "import_chunk",
    "create_stream", "destroy_stream", "synchronize",
    "create_event", "destroy_event", "record_event", "event_done", "wait_event", "synchronize_event",
    "fill", "copy", "read", "write",
    "allocate_host", "free_host", "copy_to_host", "copy_from_host",
))
# fmt: on
"""The calls of the protocol that reach the device, and so can fail."""

_CAN_RUN_OUT: Final = frozenset({"allocate", "create_chunk", "allocate_host"})

ErrorLike = BaseException | type[DriverError] | str | None
Predicate = Callable[[str, Mapping[str, object]], bool]


@dataclass(slots=True, eq=False)
class Fault:
    """One armed failure. `fired` holds the (call, arguments) that it made fail."""

    call: str
    when: Predicate | None
    countdown: int
    times: int
    error: ErrorLike
    sticky: bool
    fired: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def hits(self, call: str, arguments: dict[str, object]) -> bool:
        """Return whether this call is to fail, and count it when it matches."""
        if self.times <= 0 or self.call not in ("*", call):
            return False
        if self.when is not None and not self.when(call, arguments):
            return False
        self.countdown -= 1
        if self.countdown > 0:
            return False
        self.times -= 1
        self.fired.append((call, arguments))
        return True


class Faults:
    """The faults of one driver.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> driver = open_driver("model:4MiB")
    >>> fault = driver.faults.fail("create_chunk", nth=2)
    >>> first = driver.create_chunk(2 << 20)
    >>> driver.create_chunk(2 << 20)
    Traceback (most recent call last):
    smartpool.errors.DriverOutOfMemoryError: out of memory. Tried to allocate 2 MiB: ...
    >>> second = driver.create_chunk(2 << 20)
    """

    __slots__ = ("_armed", "_guard", "_lost", "alert")

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self._lost: str | None = None
        self._guard: Callable[[str, Mapping[str, object]], None] | None = None
        self.alert = False

    def watch(self, guard: Callable[[str, Mapping[str, object]], None] | None) -> None:
        """Ask `guard` before every call, which raises to refuse one; None ends it."""
        self._guard = guard
        self._set_alert()

    @property
    def lost(self) -> str | None:
        """The code of the sticky failure that lost the device, or None."""
        return self._lost

    def fail(
        self,
        call: str = "*",
        *,
        nth: int = 1,
        times: int = 1,
        error: ErrorLike = None,
        when: Predicate | None = None,
        sticky: bool = False,
    ) -> Fault:
        """Make the `nth` matching call from now fail, and the `times - 1` matching calls after it.

        Parameters
        ----------
        call
            A call of the protocol, or ``"*"`` for any.
        nth, times
            Which matching call fails first, counted from 1, and how many in a row.
        error
            None for the usual failure of that call (`DriverOutOfMemoryError` for `allocate` and
            `create_chunk`, `DriverError` for the rest), a code such as
            ``"CUDA_ERROR_ECC_UNCORRECTABLE"``, a class of driver error, or an exception to raise as it is.
        when
            ``when(call, arguments)`` must be true for a call to match.
        sticky
            The device is lost: every later call fails with the same code.

        Raises
        ------
        InvalidRequestError
            When the protocol has no such call, or a number is not positive.
        """
        if call != "*" and call not in CALLS:
            raise InvalidRequestError(
                f"expected '*' or a call of the driver protocol, got {call!r}: {sorted(CALLS)}"
            )
        if nth < 1 or times < 1:
            raise InvalidRequestError(f"expected nth and times of at least 1, got {nth} and {times}")
        fault = Fault(call, when, nth, times, error, sticky)
        self._armed.append(fault)
        self.alert = True
        return fault

    def script(self, call: str, outcomes: Iterable[ErrorLike | bool]) -> list[Fault]:
        """Decide the next calls one by one: True or "ok" works, anything else is the error.

        ``script("create_chunk", [True, None, True])`` lets one pass, fails one, lets one pass.
        """
        faults = []
        for nth, outcome in enumerate(outcomes, 1):
            if outcome is not True and outcome != "ok":
                error = None if outcome is False else outcome
                faults.append(self.fail(call, nth=nth, error=error))
        return faults

    def clear(self) -> None:
        """Disarm every fault. A lost device stays lost."""
        self._armed.clear()
        self._set_alert()

    def lose(self, code: str) -> None:
        """Lose the device: every later call fails with `code`."""
        self._lost = self._lost or code
        self.alert = True

    def check(self, call: str, **arguments: object) -> None:
        """Raise when the call is to fail. Drivers ask before they act, and only while `alert` is set."""
        if self._lost is not None:
            raise DriverError(call, self._lost, arguments, advice=_LOST)
        hits = [fault for fault in self._armed if fault.hits(call, arguments)]
        self._armed = [fault for fault in self._armed if fault.times > 0]
        self._set_alert()
        if hits:
            error = _error(hits[0].error, call, arguments)
            if hits[0].sticky:
                self.lose(error.code if isinstance(error, DriverError) else "INJECTED")
            raise error
        if self._guard is not None:
            self._guard(call, arguments)

    def _set_alert(self) -> None:
        self.alert = bool(self._armed) or self._lost is not None or self._guard is not None


_LOST = "the device was lost by an earlier failure: end the process"


def _error(wanted: ErrorLike, call: str, arguments: dict[str, object]) -> BaseException:
    usual = DriverOutOfMemoryError if call in _CAN_RUN_OUT else DriverError
    if wanted is None:
        wanted = usual
    if isinstance(wanted, str):
        return DriverError(call, wanted, arguments, advice="scripted fault")
    if isinstance(wanted, type):
        return wanted(call, "INJECTED", arguments, advice="scripted fault")
    return wanted
