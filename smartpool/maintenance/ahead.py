"""Mapping ahead: how much memory to map before it is asked for, by a thread that is not in a hurry.

Problem: most of the driver's time goes into growing, on the caller's thread, although much of it could
be foreseen: a program that paused, and whose memory went back by age, will grow to where it was, and
one that runs again needs what it needed the last time.
Method: what is foreseen is `SHARE` of the largest size that was needed before, or that the configuration
expects, and never more. How fast is learned. A *ramp* begins where memory was given back. As long as it
goes on, the mapper keeps ahead of what is in use by `factor` times what the ramp has grown so far: at
first by as much again, so that a ramp which ends early wastes no more than it used. When memory is given
back the next time, the ramp is judged: if less than half of what was mapped ahead was used, the factor is
halved, down to nothing; else it doubles, up to 1. One chunk is mapped at a time under the pool's lock, so
a request waits for one chunk at most, and it waits for memory that it would have had to map itself.
Bound: O(1) for each growth; log2(size / first growth) growths on the caller's thread in a ramp.
Rejected, as measured by `bench/prediction.py`: extrapolating beyond the largest size so far (what is held
ahead at the peak is held for nobody); chunks as large as the largest size allows (fewer calls, but 3 % more
memory); lifetimes (what can be foreseen of them makes placement worse).
"""

from __future__ import annotations

from typing import Final

__all__ = ["SHARE", "Forecast"]

SHARE: Final = 0.8
"""The rest, which is where edges decide how much is needed, is left to the policy."""

_LEAST: Final = 1 / 8  # a factor below that is nothing
_USED: Final = 0.5
"""Of what was mapped ahead, which share must have been used for the factor to grow."""


class Forecast:
    """What one pool will need, as far as it can be known.

    Attributes
    ----------
    factor
        How far the mapper keeps ahead, as a share of what the ramp has grown.
    mapped_bytes
        Mapped ahead so far.
    used_bytes
        Of that, what was in use before the ramp was judged.

    Examples
    --------
    >>> forecast = Forecast(expected_bytes=1000)
    >>> [forecast.ahead(live, extent) for live, extent in ((100, 110), (400, 450), (900, 950))]
    [90, 350, 0]
    """

    def __init__(self, expected_bytes: int = 0) -> None:
        self.factor = 1.0
        self.mapped_bytes = self.used_bytes = 0
        self._known = int(SHARE * expected_bytes)
        self._floor = 0
        self._in_ramp = 0

    def ahead(self, live_bytes: int, extent_bytes: int) -> int:
        """Return the bytes to map now, with `live_bytes` in use of `extent_bytes`."""
        if extent_bytes >= self._known or self.factor < _LEAST:
            return 0
        wanted = live_bytes + int(self.factor * max(0, live_bytes - self._floor))
        return max(0, min(wanted, self._known) - extent_bytes)

    def mapped(self, nbytes: int) -> None:
        """Learn that `nbytes` were mapped ahead."""
        self.mapped_bytes += nbytes
        self._in_ramp += nbytes

    def gave_back(self, *, extent_before: int, high_water: int, live_bytes: int) -> None:
        """Learn that memory was given back, after a ramp in which up to `high_water` bytes were in use."""
        if self._in_ramp:
            unused = min(self._in_ramp, max(0, extent_before - high_water))
            used = self._in_ramp - unused
            self.used_bytes += used
            if used < _USED * self._in_ramp:
                self.factor /= 2
            else:
                self.factor = min(1.0, 2 * self.factor)
        self._known = max(self._known, int(SHARE * extent_before))
        self._floor = live_bytes
        self._in_ramp = 0
