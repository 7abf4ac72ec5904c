"""Age: how much of the idle memory has been idle for so long that it is given back.

Problem: memory that idles in a pool is memory that nobody else on the device has; but a program that
comes back for it pays the driver for every chunk. When to give it back?
Method: two parts.

*What is idle.* Not "what is free now": between two steps of training nearly everything is. For each
stretch between two passes of the background optimizer the pool knows the most that was in use
(`SlowPath.high_water_bytes`), so what lies above was needed by nobody; the least of that over all
stretches of the last `age` seconds has aged. It is a count of bytes, not a list of chunks: which go
is decided when they go, the largest gaps first.

*How long.* Renting or buying skis: who does not know how long a quiet phase will be loses at most a
factor of 2 when he gives back after the time in which holding cost as much as getting it back will.
What holding costs is not known (is anybody waiting for it?), so the first `age` is configured, and
what follows is learned: memory that is wanted again within two ages was given back too early, and
the age doubles, up to `MOST` times the configured one; memory that is not halves it again. A program
that pauses regularly therefore pays a few times, not each time.
Source: low-water marks are how TCMalloc sizes its caches; the doubling is the classical remedy for an
unknown period (Karlin and others, *Competitive snoopy caching*, 1988, for the ski rental).
Bound: O(1) for each pass, amortized; a program pays for getting memory back at most once in
``max(age, period)``, and after learning once in three ages.
Rejected: ages of single chunks (a free chunk is a part of a gap, and a gap has no history: keeping one
costs every free on the searching path); giving back a share at each pass (a long pause then holds memory
for long, and a short one pays all the same).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

__all__ = ["MOST", "IdleDecay"]

MOST: Final = 16
"""Times the configured age: a quarter of an hour by default, when getting memory back is for nothing."""

_STRETCHES: Final = 64  # passes may be woken at any rate; a short stretch joins the one before


@dataclass(slots=True)
class _Stretch:
    begin: float
    idle_bytes: int


@dataclass(frozen=True, slots=True)
class _Given:
    when: float
    nbytes: int
    left: int


class IdleDecay:
    """The history of one pool's idle memory.

    Parameters
    ----------
    seconds
        How long memory idles before it is given back, at first.

    Examples
    --------
    >>> age = IdleDecay(60.0)
    >>> [age.observe(now, idle_bytes=100, reserved_bytes=500) for now in (0.0, 30.0, 60.0)]
    [0, 0, 100]
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._configured = seconds
        self._stretches: deque[_Stretch] = deque()
        self._until: float | None = None
        self._given: _Given | None = None

    def __repr__(self) -> str:
        return f"<IdleDecay of {self.seconds:g} s, {self._configured:g} s at first>"

    def observe(self, now: float, *, idle_bytes: int, reserved_bytes: int, hurry: float = 1.0) -> int:
        """Return how many bytes have aged.

        Parameters
        ----------
        now
            Seconds on a clock that never goes back.
        idle_bytes
            The least that was idle at any time since the last call.
        reserved_bytes
            What the pool holds now.
        hurry
            The share of the age that suffices this time.
        """
        begin, self._until = self._until, now
        self._learn(now, reserved_bytes)
        if begin is None:
            return 0
        self._note(begin, now, idle_bytes)
        since = now - hurry * self.seconds
        if self._stretches[0].begin > since:
            return 0
        aged = idle_bytes
        for stretch, end in zip(
            reversed(self._stretches), [now, *(s.begin for s in reversed(self._stretches))], strict=False
        ):
            if end <= since:
                break
            aged = min(aged, stretch.idle_bytes)
        return aged

    def gave_back(self, now: float, nbytes: int, reserved_bytes: int) -> None:
        """Learn that `nbytes` were given back, after which `reserved_bytes` are held."""
        if not nbytes:
            return
        for stretch in self._stretches:
            stretch.idle_bytes = max(0, stretch.idle_bytes - nbytes)
        before = self._given
        self._given = _Given(now, nbytes + (before.nbytes if before else 0), reserved_bytes)

    def _learn(self, now: float, reserved_bytes: int) -> None:
        given = self._given
        if given is None:
            return
        if now - given.when > 2 * self.seconds:
            self.seconds = max(self._configured, self.seconds / 2)
            self._given = None
        elif reserved_bytes - given.left >= given.nbytes / 2:
            self.seconds = min(MOST * self._configured, self.seconds * 2)
            self._given = None

    def _note(self, begin: float, now: float, idle_bytes: int) -> None:
        stretches = self._stretches
        short = MOST * self._configured / _STRETCHES / 4
        if stretches and now - stretches[-1].begin < short:
            stretches[-1].idle_bytes = min(stretches[-1].idle_bytes, idle_bytes)
        else:
            stretches.append(_Stretch(begin, idle_bytes))
        while len(stretches) > 1 and stretches[1].begin <= now - self.seconds:
            stretches.popleft()
