"""The skyline: what a tree search changes, and takes back.

For each section it keeps the height, below which nothing more is placed, and the slack:

    height + slack + load of the unplaced buffers == capacity        in every section

A *component* is a range of sections that unplaced buffers connect; a *valley* is a run of equal heights in
it between higher neighbours, the component's bounds counting as infinitely high. Placing on a valley's
floor, flooding a valley that nothing fits, and raising one section are all that ever happens. Each
changes the valleys beside it and no others, so a component carries its list of valleys, with the
section of each that is to be asked first, and only those that changed are looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from smartpool.errors import InvariantError

DEAD: Final = -2.0  # the score of a section where no buffer fits: settled before all others
FORCED: Final = -1.0  # the score of a section with one choice

# Tuples, not classes, as they are made at every node.
Valley = tuple[float, int, int, int]  # score, section, first section, last section (exclusive)
Component = tuple[int, int, list[Valley]]  # first section, last section (exclusive), its valleys
Agenda = tuple[Component, int, "Agenda"] | None  # what is still to be solved; the choices to forget then


@dataclass(frozen=True, slots=True)
class Task:
    """What a tree works on; buffers stand in the order in which they are tried.

    Attributes
    ----------
    first, last, size, alignment
        As in `Problem`.
    sections
        Their number.
    capacity
        In units.
    """

    first: list[int]
    last: list[int]
    size: list[int]
    alignment: list[int]
    sections: int
    capacity: int


class Skyline:
    """Heights and slack over sections, and the buffers that are not placed.

    Parameters
    ----------
    task
        The buffers and the capacity.
    weights
        For each section, one more than the dead ends it caused: sections with more are asked first.
    lazy
        Raise floors only where nothing fits.
    """

    __slots__ = (
        "_aligned",
        "_covers",
        "_crosses",
        "_height",
        "_lazy",
        "_left_of",
        "_right_of",
        "_slack",
        "_task",
        "_trail",
        "_twins",
        "_unplaced",
        "_weights",
        "offsets",
    )

    def __init__(self, task: Task, weights: list[float], *, lazy: bool) -> None:
        self._task = task
        self._weights = weights
        self._lazy = lazy
        self._aligned = any(alignment > 1 for alignment in task.alignment)
        self.offsets = [0] * len(task.size)
        self._unplaced = (1 << len(task.size)) - 1
        self._height = [0] * task.sections
        self._trail: list[tuple[int, int, list[int], list[int] | None]] = []
        self._index(task)

    def _index(self, task: Task) -> None:
        """Build the sets of buffers: by section, by where they lie, and equal ones before each."""
        count = task.sections
        begins, ends, change = [0] * (count + 1), [0] * (count + 1), [0] * (count + 1)
        groups: dict[tuple[int, int, int, int], int] = {}
        self._twins = []
        for index, key in enumerate(zip(task.first, task.last, task.size, task.alignment, strict=True)):
            first, last, size, _ = key
            bit = 1 << index
            begins[first] |= bit
            ends[last] |= bit
            change[first] += size
            change[last] -= size
            twins = groups.get(key, 0)
            self._twins.append(twins)
            groups[key] = twins | bit
        self._covers, self._crosses, self._slack = [], [], []
        live, load = 0, 0
        for section in range(count):
            self._crosses.append(live & ~ends[section])
            live = live & ~ends[section] | begins[section]
            self._covers.append(live)
            load += change[section]
            self._slack.append(task.capacity - load)
        self._left_of, self._right_of = ends, begins  # those that end by / begin at or after a boundary
        for boundary in range(1, count + 1):
            self._left_of[boundary] |= self._left_of[boundary - 1]
        for boundary in range(count - 1, -1, -1):
            self._right_of[boundary] |= self._right_of[boundary + 1]

    def check(self) -> None:
        """Raise `InvariantError` unless height + slack + unplaced load == capacity in every section."""
        for section, cover in enumerate(self._covers):
            rest = cover & self._unplaced
            load = sum(size for index, size in enumerate(self._task.size) if rest >> index & 1)
            height, slack = self._height[section], self._slack[section]
            if slack < 0 or height + slack + load != self._task.capacity:
                raise InvariantError(
                    f"section {section}: height {height} + slack {slack} + load {load}"
                    f" is not the capacity {self._task.capacity}"
                )
            tops = (
                self.offsets[index] + size
                for index, size in enumerate(self._task.size)
                if (cover & ~self._unplaced) >> index & 1
            )
            if max(tops, default=0) > height:
                raise InvariantError(f"section {section}: a buffer ends above its height {height}")

    def _valley(self, left: int, right: int) -> Valley:
        """Find the section of the valley [left, right) with the fewest choices for its weight."""
        fit = self._unplaced & self._right_of[left] & self._left_of[right]
        counts = [(cover & fit).bit_count() for cover in self._covers[left:right]]
        fewest = min(counts)
        if fewest == 0:
            return (DEAD, left + counts.index(0), left, right)
        if not self._lazy:
            counts = [
                count + 1 if slack else count
                for count, slack in zip(counts, self._slack[left:right], strict=True)
            ]
            fewest = min(counts)
        if fewest == 1:
            return (FORCED, left + counts.index(1), left, right)
        scores = [count / weight for count, weight in zip(counts, self._weights[left:right], strict=True)]
        best = min(scores)
        return (best, left + scores.index(best), left, right)

    def _affords(self, index: int) -> bool:
        """Say whether the slack pays for what the buffer's alignment wastes below it."""
        first, last = self._task.first[index], self._task.last[index]
        padding = -self._height[first] % self._task.alignment[index]
        return padding <= min(self._slack[first:last])

    def _walls(self, valley: Valley, component: Component) -> tuple[int, int]:
        """Return the heights beside the valley; nothing crosses the bounds of the component."""
        _, _, left, right = valley
        first, last, _ = component
        beyond = self._task.capacity + 1
        return (
            self._height[left - 1] if left > first else beyond,
            self._height[right] if right < last else beyond,
        )

    def _over_walls(self, section: int, valley: Valley, walls: tuple[int, int]) -> int:
        """Return the lowest wall on which a buffer that covers the section and leaves the valley rests."""
        unplaced = self._unplaced & self._covers[section]
        to_left = unplaced & ~self._right_of[valley[2]]
        to_right = unplaced & ~self._left_of[valley[3]]
        lowest = self._task.capacity + 1
        if to_left & ~to_right:
            lowest = walls[0]
        if to_right & ~to_left and walls[1] < lowest:
            lowest = walls[1]
        if to_left & to_right and max(walls) < lowest:
            lowest = max(walls)
        return lowest

    # ------------------------------------------------------------------ what can be done

    def _place(
        self, index: int, valley: Valley, component: Component, mark: int, agenda: Agenda
    ) -> tuple[Component | None, Agenda]:
        """Place a buffer on the valley's floor; split the component where nothing crosses any more."""
        first, last = self._task.first[index], self._task.last[index]
        floor = self._height[first]
        padding = -floor % self._task.alignment[index] if self._aligned else 0
        slack = None
        if padding:
            slack = self._slack[first:last]
            self._slack[first:last] = [value - padding for value in slack]
        self._trail.append((first, last, self._height[first:last], slack))
        self.offsets[index] = floor + padding
        top = floor + padding + self._task.size[index]
        self._height[first:last] = [top] * (last - first)
        self._unplaced = unplaced = self._unplaced & ~(1 << index)
        start, end, valleys = component
        cuts = [cut for cut in range(first + 1, last) if not self._crosses[cut] & unplaced]
        if not cuts and (end - start > 1 or self._covers[start] & unplaced):
            return self._changed(valley, component), agenda
        others = [other for other in valleys if other is not valley]
        bounds = [start, *cuts, end]
        for low, high in pairwise(bounds):
            if high - low > 1 or self._covers[low] & unplaced:
                inside = [other for other in others if low <= other[2] and other[3] <= high]
                inside += self._runs(valley[2], valley[3], low, high)
                agenda = ((low, high, inside), mark, agenda)
        return None, agenda

    def _flood(self, valley: Valley, component: Component) -> int:
        """Raise the sections of a valley that no buffer fits to their lowest walls.

        Returns -1, or the first section whose slack does not pay for it; then nothing was changed.
        """
        _, _, left, right = valley
        fit = self._unplaced & self._right_of[left] & self._left_of[right]
        walls = self._walls(valley, component)
        floor = self._height[left]
        heights = self._height[left:right]
        for section in range(left, right):
            if not self._covers[section] & fit:
                lowest = self._over_walls(section, valley, walls)
                if lowest - floor > self._slack[section]:
                    return section
                heights[section - left] = lowest
        self._raise(left, right, heights)
        return -1

    def _raise(self, left: int, right: int, heights: list[int]) -> None:
        """Raise floors to `heights` and take the difference out of the slack."""
        old, slack = self._height[left:right], self._slack[left:right]
        self._trail.append((left, right, old, slack))
        self._height[left:right] = heights
        self._slack[left:right] = [
            value - new + before for value, new, before in zip(slack, heights, old, strict=True)
        ]

    def _undo(self, length: int) -> None:
        """Take back what was done since the trail had this length."""
        trail = self._trail
        while len(trail) > length:
            left, right, heights, slack = trail.pop()
            self._height[left:right] = heights
            if slack is not None:
                self._slack[left:right] = slack

    # ------------------------------------------------------------------ its shape

    def _changed(self, valley: Valley, component: Component) -> Component:
        """Return the component after a change inside one of its valleys."""
        start, end, valleys = component
        others = [other for other in valleys if other is not valley]
        return (start, end, others + self._runs(valley[2], valley[3], start, end))

    def _runs(self, left: int, right: int, start: int, end: int) -> list[Valley]:
        """Find the valleys of the component [start, end) that touch or adjoin [left, right)."""
        height = self._height
        found = []
        left, right = max(left - 1, start), min(right + 1, end)
        while left < right:
            level = height[left]
            low, high = left, left + 1
            while low > start and height[low - 1] == level:
                low -= 1
            while high < end and height[high] == level:
                high += 1
            if (low == start or height[low - 1] > level) and (high == end or height[high] > level):
                found.append(self._valley(low, high))
            left = high
        return found

    def _pieces(self, start: int, end: int) -> Agenda:
        """Split the whole time where nothing crosses."""
        cuts = [cut for cut in range(start + 1, end) if not self._crosses[cut]]
        agenda: Agenda = None
        bounds = [start, *cuts, end]
        for low, high in pairwise(bounds):
            if high > low:
                agenda = ((low, high, self._runs(low, high, low, high)), 0, agenda)
        return agenda
