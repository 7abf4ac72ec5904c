"""Recognition of repetition: the period of a sequence of requests, and where to cut it.

Problem: a program repeats itself and does not say so. From a log of its requests: is it periodic
now, with which period, and between which two requests does a repetition begin?
Method: a *word* is some sizes in a row. The distances from words to their previous occurrence hold
every period, also that of a step whose layers repeat within it: words that occur once a step are
that far apart. The most common distances are tried, the smallest first. A period must explain
the sizes of the last `EVIDENCE` requests, and of one whole repetition at least (`AGREEMENT`), and it
must be *closed*: nearly all of what is requested is freed within one period. That is what tells a
step from the layers of its forward pass, whose activations are freed in the backward pass, and
which would make a poor plan. It is cut where fewest bytes are live that will be freed.
Bound: O(n log n) with NumPy for n requests; 3 ms for 8,192 on one core of a server.
Rejected: the autocorrelation of the whole log (finds the mean period of varying steps, which
serves nobody); the sequence of bin misses (free to watch, but a flush comes earlier or later
from step to step, so that equal steps miss differently); positions alone, without lifetimes (locks
onto layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from smartpool.pool.steps.plans import OUTLIVED
from smartpool.pool.steps.plans import Sequence as Requests

if TYPE_CHECKING:
    import numpy as np

    Int64s = np.ndarray[Any, np.dtype[np.int64]]

__all__ = ["AGREEMENT", "EVIDENCE", "SHORTEST", "WORDS", "agreeing_periods", "find_period", "repetition_in"]

WORDS: Final = (8, 64, 512)
"""Sizes in a row that are looked for earlier: short ones stand noise, long ones tell layers from steps."""
SHORTEST: Final = 16
"""Requests that the shortest period has; below, bins alone serve as well."""
EVIDENCE: Final = 2048
AGREEMENT: Final = 0.99
CLOSED: Final = 0.9
_CANDIDATES: Final = 16
_FACTOR: Final = 0x9E3779B97F4A7C15


def agreeing_periods(sizes: Sequence[int]) -> list[int]:
    """Return the periods that explain the end of a sequence of request sizes, ascending.

    Examples
    --------
    >>> agreeing_periods([100 * number for number in range(1, 21)] * 110)[:1]
    [20]
    """
    import numpy as np  # noqa: PLC0415 - not before something is to be recognised

    numbers = np.asarray(sizes, dtype=np.int64)
    count = len(numbers)
    found = []
    for period in _distances(numbers):
        evidence = max(period, EVIDENCE)
        if period + evidence <= count:
            late = numbers[count - evidence :]
            early = numbers[count - evidence - period : count - period]
            if np.mean(late == early) >= AGREEMENT:
                found.append(period)
    return found


def find_period(requests: Requests) -> int | None:
    """Return after how many requests a sequence repeats itself, at its end; None if it does not."""
    import numpy as np  # noqa: PLC0415

    lives = _lifetimes(requests)
    for period in agreeing_periods(requests.nbytes):
        if np.mean(_of_repetition(lives, period) <= period) >= CLOSED:
            return period
    return None


def repetition_in(requests: Requests) -> Requests | None:
    """Return one repetition of a sequence that repeats itself at its end, well cut, or None.

    It is cut before the request at which fewest bytes are live that are freed in the next period.
    """
    import numpy as np  # noqa: PLC0415

    period = find_period(requests)
    if period is None:
        return None
    sizes = np.asarray(requests.nbytes[-2 * period : len(requests) - period], dtype=np.int64)
    lives = _of_repetition(_lifetimes(requests), period)
    closed = lives <= period
    live = np.zeros(2 * period + 2, dtype=np.int64)  # by request: bytes of closed lives across it
    first = np.flatnonzero(closed)
    np.add.at(live, first + 1, sizes[first])
    np.add.at(live, first + lives[first], -sizes[first])
    across = np.cumsum(live)
    cut = int(np.argmin(across[:period] + across[period : 2 * period]))
    turned = np.where(closed, (np.arange(period) - cut) % period + lives, OUTLIVED)
    return Requests(
        (*sizes[cut:].tolist(), *sizes[:cut].tolist()),
        (*turned[cut:].tolist(), *turned[:cut].tolist()),
        requests.shared,
    )


def _distances(sizes: Int64s) -> list[int]:
    """Return distances from words of the later half to their previous occurrence, ascending.

    For each length of words the most common ones.
    """
    import numpy as np  # noqa: PLC0415

    _, letters = np.unique(sizes, return_inverse=True)
    words, length, factor = letters.astype(np.uint64) + 1, 1, _FACTOR
    found: set[int] = set()
    while 2 * length <= min(WORDS[-1], len(sizes) // 2):
        words = words[:-length] * np.uint64(factor) + words[length:]  # of twice the length
        length, factor = 2 * length, factor * factor % 2**64
        if length in WORDS:
            order = np.argsort(words, kind="stable")
            same = words[order[1:]] == words[order[:-1]]
            recent = order[1:] >= len(words) // 2
            distances = (order[1:] - order[:-1])[same & recent]
            values, occurrences = np.unique(distances[distances >= SHORTEST], return_counts=True)
            found.update(values[np.argsort(-occurrences, kind="stable")[:_CANDIDATES]].tolist())
    return sorted(found)


def _lifetimes(requests: Requests) -> Int64s:
    """Return after how many requests each was freed; very many for those that were not."""
    import numpy as np  # noqa: PLC0415

    freed = np.asarray(requests.freed_before, dtype=np.int64)
    return np.where(freed == OUTLIVED, np.int64(1) << 60, freed - np.arange(len(freed)))


def _of_repetition(lives: Int64s, period: int) -> Int64s:
    """Return what belongs to the last repetition of which all closed lifetimes are known."""
    return lives[len(lives) - 2 * period : len(lives) - period]
