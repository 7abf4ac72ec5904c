"""The solvers' view of an instance: only what matters, in one order, in the fewest sections.

Problem: the same instance comes in many guises (permuted, scaled, with times far apart, with intervals
that are never live), and no solver should see a difference.

Method, all vectorised and O(n log n):

* intervals of size 0 or of an empty lifetime are left out: any offset does;
* the rest is sorted by lifetime, size, alignment, fixed offset and priority, so that the order of the
  input cannot matter;
* time becomes the maximal cliques of the interval graph: a new section begins only where a start follows
  an end. Two lifetimes overlap in sections when and only when they overlap in time (Fulkerson and
  Gross, "Incidence matrices and interval graphs", 1965), and the largest loads are all kept;
* sizes are divided by a common divisor of sizes, fixed offsets and alignments; nothing is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from smartpool.planner.intervals import FREE, LARGEST_TOTAL, IntervalSet
from smartpool.planner.sweeps import Int64s, component_of, section_load

__all__ = ["Problem", "cliques"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Problem:
    """Intervals that a solver must place.

    Parameters
    ----------
    first, last
        The sections ``first <= k < last`` that an interval covers: at least one.
    size
        At least 1, in units.
    alignment
        In units; None when all are 1.
    fixed
        In units, `FREE` where the planner chooses; None when it chooses everywhere.
    load
        Of each section.
    """

    first: Int64s
    last: Int64s
    size: Int64s
    alignment: Int64s | None
    fixed: Int64s | None
    load: Int64s

    def __len__(self) -> int:
        return len(self.size)

    @property
    def bound(self) -> int:
        """No plan is lower: the largest load, or the end of the highest fixed interval."""
        bound = int(self.load.max(initial=0))
        if self.fixed is not None:
            bound = max(bound, int(np.where(self.fixed == FREE, 0, self.fixed + self.size).max(initial=0)))
        return bound

    @property
    def key(self) -> tuple[bytes | None, ...]:
        """The same for problems that are equal in all columns."""
        columns = (self.first, self.last, self.size, self.alignment, self.fixed)
        return tuple(None if column is None else column.tobytes() for column in columns)

    @property
    def alignments(self) -> Int64s:
        """The alignment of each, 1 where none is asked for."""
        return np.ones_like(self.size) if self.alignment is None else self.alignment

    @property
    def common_alignment(self) -> int:
        """The least number that is a multiple of every alignment, but no more than any offset is."""
        if self.alignment is None:
            return 1
        return min(math.lcm(*np.unique(self.alignment).tolist()), LARGEST_TOTAL)

    def take(self, rows: Int64s) -> Problem:
        """Return the problem of these rows alone, its sections made few again."""
        first, last, count = cliques(self.first[rows], self.last[rows])
        size = self.size[rows]
        alignment = None if self.alignment is None else self.alignment[rows]
        fixed = None if self.fixed is None else self.fixed[rows]
        return Problem(
            first=first,
            last=last,
            size=size,
            alignment=None if alignment is None or (alignment == 1).all() else alignment,
            fixed=None if fixed is None or (fixed == FREE).all() else fixed,
            load=section_load(first, last, size, count),
        )

    def clip(self, rows: Int64s, low: int, high: int) -> Problem:
        """Return the problem of these rows in the sections ``low <= k < high`` alone; all must touch them."""
        first, last = np.maximum(self.first[rows], low) - low, np.minimum(self.last[rows], high) - low
        return Problem(
            first=first,
            last=last,
            size=self.size[rows],
            alignment=None if self.alignment is None else self.alignment[rows],
            fixed=None if self.fixed is None else self.fixed[rows],
            load=section_load(first, last, self.size[rows], int(high - low)),
        )

    def with_fixed(self, fixed: Int64s) -> Problem:
        """Return the same problem with these offsets fixed, `FREE` elsewhere."""
        return replace(self, fixed=None if (fixed == FREE).all() else fixed)

    def free(self) -> Problem:
        """Return the same problem without fixed offsets."""
        return self if self.fixed is None else replace(self, fixed=None)

    def in_units(self) -> tuple[Problem, int]:
        """Return the same problem in the largest unit in which all its offsets are whole, and that unit.

        Every offset that a solver tries is a sum of sizes, or rounded up to an alignment, so the unit divides
        sizes, fixed offsets and those alignments to which sums of sizes have to be rounded.
        """
        size, alignment, fixed = self.size, self.alignments, self.fixed
        unit = int(np.gcd.reduce(size)) if len(size) else 1
        if fixed is not None:
            unit = int(np.gcd.reduce(fixed[fixed != FREE], initial=unit))
        if (unit % alignment != 0).any():
            unit = int(np.gcd.reduce(alignment[alignment > 1], initial=unit))
        alignment = alignment // np.gcd(alignment, unit)
        scaled = replace(
            self,
            size=size // unit,
            alignment=None if (alignment == 1).all() else alignment,
            fixed=None if fixed is None else np.where(fixed == FREE, FREE, fixed // unit),
            load=self.load // unit,
        )
        return scaled, unit

    def components(self) -> list[Int64s]:
        """Return the rows of each connected component, in order of time."""
        component = component_of(self.first, self.last)
        order = np.argsort(component, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(component[order])) + 1) if len(order) else []


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Normalized:
    """A problem, and the way back.

    Parameters
    ----------
    problem
        What is left to solve.
    rows
        The row of the input that each row of the problem stands for.
    unit
        Bytes in one unit.
    """

    problem: Problem
    rows: Int64s
    unit: int

    def expand(self, offsets: Int64s, intervals: IntervalSet) -> Int64s:
        """Return offsets in bytes for all intervals of the input."""
        full = np.where(intervals.fixed == FREE, 0, intervals.fixed)
        full[self.rows] = offsets * self.unit
        return full


def normalize(intervals: IntervalSet) -> Normalized:
    """Reduce an input to what a solver needs; see the module."""
    rows = np.flatnonzero((intervals.size > 0) & (intervals.start < intervals.end))
    columns = (
        -intervals.priority[rows],
        intervals.fixed[rows],
        intervals.alignment[rows],
        -intervals.size[rows],
        intervals.end[rows],
        intervals.start[rows],
    )
    # Most of these columns are constant in most instances, and a sort of a million rows is not free.
    varied = tuple(column for column in columns if len(column) and (column != column[0]).any())
    order = np.lexsort(varied) if varied else np.arange(len(rows))
    rows = rows[order]
    size, alignment, fixed = intervals.size[rows], intervals.alignment[rows], intervals.fixed[rows]
    first, last, count = cliques(intervals.start[rows], intervals.end[rows])
    problem, unit = Problem(
        first=first,
        last=last,
        size=size,
        alignment=None if (alignment == 1).all() else alignment,
        fixed=None if (fixed == FREE).all() else fixed,
        load=section_load(first, last, size, count),
    ).in_units()
    return Normalized(problem=problem, rows=rows, unit=unit)


def cliques(start: Int64s, end: Int64s) -> tuple[Int64s, Int64s, int]:
    """Return the first and one past the last maximal clique of each lifetime, and their number.

    >>> first, last, count = cliques(np.array([0, 2, 4]), np.array([3, 6, 8]))
    >>> first.tolist(), last.tolist(), count
    ([0, 0, 1], [1, 2, 2], 2)
    """
    n = len(start)
    if not n:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    # Ends before starts at an instant: stable, with the ends in front.
    order = np.argsort(np.concatenate([end, start]), kind="stable")
    is_start = order >= n
    begins = is_start.copy()
    begins[1:] &= ~is_start[:-1]
    clique = np.empty(2 * n, np.int64)
    clique[order] = np.cumsum(begins)
    return clique[n:] - 1, clique[:n], int(begins.sum())
