"""Cut a problem into parts that cannot disturb one another.

Problem: a solver's time grows faster than its input, and one hard stretch of time should not make all
the others wait.

Method, repeated until nothing changes:

* **split** where no interval crosses: connected components of the overlap graph share no instant, so
  each has the whole address space, and the height is that of the highest;
* **peel** intervals that live through a whole component: they go to its floor, one upon another, and the
  rest is planned above them. No plan is lost: exchanging ranges of addresses brings them down in
  every plan. Without them the component often splits again (weights under training steps);
* **recognise** parts that are equal in lifetimes, sizes and alignment: one is solved, all are served.

Fixed offsets forbid peeling, as the floor may be taken. With alignment only multiples of all of them
are peeled, so that everything above stays aligned. O(n log n) a round; the rounds are few, as each but the
last removes an interval from every part that it looks at again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s

__all__ = ["Part", "decompose"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Part:
    """A problem to be solved alone, as often as it occurs.

    Parameters
    ----------
    problem
        What to place.
    base
        What lies beneath: the part's offset 0 is the whole's `base`.
    copies
        For each occurrence the rows of the whole, in the order of the part's own rows.
    """

    problem: Problem
    base: int
    copies: tuple[Int64s, ...]


def decompose(problem: Problem) -> tuple[list[Part], Int64s]:
    """Return the parts, and offsets in which only what was peeled is placed.

    Examples
    --------
    >>> from smartpool.planner.intervals import IntervalSet
    >>> from smartpool.planner.problem import normalize
    >>> start, end = [0, 0, 1, 3, 5, 7, 8, 10, 12], [14, 2, 4, 6, 7, 9, 11, 13, 14]
    >>> weights_and_two_steps = IntervalSet.from_arrays(start, end, [8, 3, 4, 2, 5, 3, 4, 2, 5])
    >>> parts, offsets = decompose(normalize(weights_and_two_steps).problem)
    >>> len(parts), len(parts[0].copies), parts[0].base, offsets.tolist()
    (1, 2, 8, [0, 0, 0, 0, 0, 0, 0, 0, 0])
    """
    offsets = np.zeros(len(problem), np.int64)
    found: dict[tuple[object, ...], list[tuple[Problem, Int64s]]] = {}
    todo = [(problem, np.arange(len(problem)), 0)]
    while todo:
        whole, rows, base = todo.pop()
        for inside in whole.components():
            part, part_rows = (
                (whole, rows) if len(inside) == len(rows) else (whole.take(inside), rows[inside])
            )
            peeled = _full_span(part)
            if peeled.any():
                sizes = part.size[peeled]
                offsets[part_rows[peeled]] = base + np.cumsum(sizes) - sizes
                if not peeled.all():
                    rest = np.flatnonzero(~peeled)
                    todo.append((part.take(rest), part_rows[rest], base + int(sizes.sum())))
            else:
                found.setdefault((base, *part.key), []).append((part, part_rows))
    parts = [
        Part(problem=same[0][0], base=key[0], copies=tuple(rows for _, rows in same))
        for key, same in found.items()
        if isinstance(key[0], int)
    ]
    return parts, offsets


def _full_span(part: Problem) -> np.ndarray:
    if part.fixed is not None:
        return np.zeros(len(part), bool)
    full: np.ndarray = (part.first == 0) & (part.last == len(part.load))
    full &= part.size % part.common_alignment == 0
    return full
