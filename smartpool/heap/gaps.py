"""Gaps: free ranges of addresses, joined with their neighbors at once, found by first fit.

Problem: of many free ranges, find one that fits, take a part of it, and when a range comes back, find
its free neighbors, all in interpreted Python.
Method: gaps from `apart` bytes on stand in order of address (`smartpool.heap.large_gaps`), and a request
takes the first that fits. Smaller ones, of which there may be any number, stand apart, where only smaller
requests look: in boundary tags (Knuth, *The Art of Computer Programming* 1, section 2.5) kept in
dictionaries, and in one dictionary for each power of two of the size. A small request looks at a few gaps
of its own power, takes the first that fits, and else any gap of the next power that has one.
Bound: O(1) for a small gap; for a large one see `LargeGaps`.
Rejected, all measured on recorded programs: best fit (a quarter slower, and no better once free memory
can be shown side by side), one list for all sizes (0.3 points more memory), next fit.

A *barrier* is an address across which gaps are never joined: the seam between two ranges that must be
given back each as a whole.

*Uses* say which streams may still touch a gap: a mapping from stream to a position in that
stream. Gaps store, join (the later position wins) and hand them out; they do not read them. None, the
usual case, stands for whatever the owner takes as its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice, pairwise
from typing import Final, TypeAlias

from smartpool.containers.range_map import Range
from smartpool.errors import InvariantError
from smartpool.heap.large_gaps import LargeGaps
from smartpool.units import MiB

__all__ = ["ALIGNMENT", "APART", "TRIES", "Gaps", "Range", "Uses", "join_uses", "size_then_address"]

ALIGNMENT: Final = 512
"""Bytes: every block starts on a multiple of it and is a multiple of it long."""

APART: Final = 2 * MiB
"""Bytes: the size from which on a gap is large."""

TRIES: Final = 16
"""Gaps of a request's own power of two that are looked at before a larger one is cut."""

Uses: TypeAlias = Mapping[int, int] | None


class Gaps:
    """Free ranges, by where they start and end.

    Parameters
    ----------
    apart
        The size in bytes from which on a gap is large.

    Attributes
    ----------
    uses
        Start of a gap to the streams that may still touch it. A gap of which nothing is known is not in it.
    """

    __slots__ = ("_above", "_apart", "_at", "_barriers", "_before", "_large", "_powers", "uses")

    def __init__(self, apart: int = APART) -> None:
        self._apart = apart
        self._barriers: dict[int, int] = {}  # address -> number of ranges that begin or end there
        self._clear()

    def _clear(self) -> None:
        """Forget all gaps and barriers."""
        self._at: dict[int, int] = {}  # small gaps: start -> size
        self._before: dict[int, int] = {}  # small gaps: end -> start
        powers: list[dict[int, int]] = [{} for _ in range(self._apart.bit_length() + 1)]
        self._powers = powers  # small gaps by the bit length of their size: start -> size
        self._above = [tuple(powers[bits + 1 :]) for bits in range(len(powers))]
        self._large = LargeGaps()
        self.uses: dict[int, Mapping[int, int]] = {}
        self._barriers = {}

    # ------------------------------------------------------------------ questions

    def find(self, size: int, alignment: int = ALIGNMENT) -> Range | None:
        """Return the gap that a request of `size` bytes takes, or None."""
        if alignment <= ALIGNMENT:
            if size < self._apart and (start := self._find_small(size)) is not None:
                return Range(start, self._at[start])
            found = self._large.first(size)
            return None if found is None else Range(*found)
        for gap in self.fitting(size):
            if (gap.start + alignment - 1 & -alignment) + size <= gap.end:
                return gap
        return None

    def _find_small(self, size: int) -> int | None:
        """Return the start of a small gap of at least `size` bytes, which is small, too; or None."""
        bits = size.bit_length()
        own = self._powers[bits]
        for start, have in own.items() if len(own) <= TRIES else islice(own.items(), TRIES):
            if have >= size:
                return start
        for power in self._above[bits]:
            if power:
                for start in power:
                    return start
        return None

    def fitting(self, size: int) -> Iterator[Range]:
        """Yield the gaps of at least `size` bytes, in the order in which they are to be taken."""
        if size < self._apart:
            bits = size.bit_length()
            for start, have in self._powers[bits].items():
                if have >= size:
                    yield Range(start, have)
            for power in self._above[bits]:
                for start, have in power.items():
                    yield Range(start, have)
        for start, have in self._large.fitting(size):
            yield Range(start, have)

    def gaps_by_size(self) -> Iterator[Range]:
        """Yield the gaps, largest first. The arena must not change meanwhile. O(n log n), in parts."""
        for start, size in sorted(self._large, key=size_then_address, reverse=True):
            yield Range(start, size)
        for power in reversed(self._powers):
            for start, size in sorted(power.items(), key=size_then_address, reverse=True):
                yield Range(start, size)

    @property
    def largest_gap(self) -> Range | None:
        """The largest gap, or None. O(large gaps)."""
        return next(self.gaps_by_size(), None)

    def gap_at(self, start: int) -> Range | None:
        """Return the gap that starts at `start`, or None."""
        size = self._at.get(start) or self._large.size_at(start)
        return Range(start, size) if size else None

    def gap_before(self, end: int) -> Range | None:
        """Return the gap that ends at `end`, or None."""
        start = self._before.get(end)
        if start is None:
            found = self._large.covering(end - 1)
            if found is None or sum(found) != end:
                return None
            start = found[0]
        return Range(start, end - start)

    def gap_around(self, address: int) -> Range | None:
        """Return the gap that covers `address`, or None. O(small gaps) where it is one of them."""
        found = self._large.covering(address)
        if found is not None:
            return Range(*found)
        for start, size in self._at.items():
            if start <= address < start + size:
                return Range(start, size)
        return None

    def is_free(self, piece: Range) -> bool:
        """Return whether `piece` lies in a large gap, or at either end of a small one."""
        found = self._large.covering(piece.start)
        gap = self.gap_at(piece.start) or self.gap_before(piece.end) if found is None else Range(*found)
        return gap is not None and gap.start <= piece.start and piece.end <= gap.end

    def gaps(self) -> list[Range]:
        """Return the gaps by address. O(n log n)."""
        return sorted(Range(start, size) for start, size in chain(self._at.items(), self._large))

    def sizes(self) -> Iterator[int]:
        """Yield the sizes of the gaps, in no order."""
        yield from self._at.values()
        for _, size in self._large:
            yield size

    @property
    def gap_count(self) -> int:
        """How many gaps there are."""
        return len(self._at) + len(self._large)

    def uses_of(self, gap: Range) -> Uses:
        """Return which streams may still touch `gap`."""
        return self.uses.get(gap.start)

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every gap: from now on their streams count as users of it. O(gaps)."""
        for start, _ in chain(self._at.items(), self._large):
            self.uses[start] = join_uses(self.uses.get(start), uses) or uses

    # ------------------------------------------------------------------ changes

    def join(self, start: int, size: int, uses: Uses = None) -> Range:
        """Add a gap, join it with the gaps on both sides, and return what came of it."""
        end = start + size
        barriers = self._barriers
        if end not in barriers and (behind := self.gap_at(end)) is not None:
            uses = join_uses(uses, self._remove_gap(*behind))
            end += behind[1]
        if start not in barriers and (before := self.gap_before(start)) is not None:
            uses = join_uses(uses, self._remove_gap(*before))
            start = before[0]
        self._add_gap(start, end - start, uses)
        return Range(start, end - start)

    def join_unused(self, start: int, size: int) -> None:
        """Add a gap that nobody may still touch, while none is in use and there is no barrier: as `join`."""
        end = start + size
        at, before, powers = self._at, self._before, self._powers
        if end in at:
            have = at.pop(end)
            del powers[have.bit_length()][end]
            end += have
            del before[end]
        if start in before:
            start = before.pop(start)
            have = at.pop(start)
            del powers[have.bit_length()][start]
        if not self._large.join(start, end, self._apart):
            at[start] = size = end - start
            before[end] = start
            powers[size.bit_length()][start] = size

    def take(self, size: int) -> int | None:
        """Cut `size` bytes off the gap that a request takes, none of them in use; return where, or None."""
        if size < self._apart and (start := self._find_small(size)) is not None:
            have = self._at.pop(start)
            del self._powers[have.bit_length()][start]
            end = start + have
            if have == size:
                del self._before[end]
                return start
        else:
            found = self._large.take(size, self._apart)
            if found is None:
                return None
            start, have = found
            end = start + have
            if have == size or have - size >= self._apart:
                return start
        rest, have = start + size, have - size
        self._at[rest] = have
        self._before[end] = rest
        self._powers[have.bit_length()][rest] = have
        return start

    def cut_out(self, gap: Range, start: int, size: int) -> None:
        """Take [start, start + size) out of `gap`, all of it inside."""
        first, end = gap[0], start + size
        behind = first + gap[1] - end
        if start < first or behind < 0:
            raise InvariantError(f"[{start:#x}, +{size}) is not inside {gap}")
        uses = self._remove_gap(*gap)
        if start > first:
            self._add_gap(first, start - first, uses)
        if behind:
            self._add_gap(end, behind, uses)

    def _add_gap(self, start: int, size: int, uses: Uses) -> None:
        if size < self._apart:
            self._at[start] = size
            self._before[start + size] = start
            self._powers[size.bit_length()][start] = size
        else:
            self._large.add(start, size)
        if uses is not None:
            self.uses[start] = uses

    def _remove_gap(self, start: int, size: int) -> Uses:
        if size < self._apart:
            del self._at[start], self._before[start + size], self._powers[size.bit_length()][start]
        else:
            self._large.remove(start)
        return self.uses.pop(start, None) if self.uses else None

    def _gap_problems(self) -> list[str]:
        """Return what is wrong with the gaps among themselves. O(n log n)."""
        gaps = self.gaps()
        problems = self._large.problems() + [
            f"gaps {low} and {high} touch"
            for low, high in pairwise(gaps)
            if low.end == high.start and high.start not in self._barriers
        ]
        small = [gap for gap in gaps if gap.size < self._apart]
        equations = {
            "small gaps": (dict(small), self._at),
            "small gaps by end": ({gap.end: gap.start for gap in small}, self._before),
            "small gaps by power": (
                [
                    {s: size for s, size in small if size.bit_length() == bits}
                    for bits in range(len(self._powers))
                ],
                self._powers,
            ),
            "uses belong to gaps": (set(self.uses) - {gap.start for gap in gaps}, set()),
        }
        return problems + [
            f"{name}: {left} != {right}" for name, (left, right) in equations.items() if left != right
        ]


def size_then_address(gap: tuple[int, int]) -> tuple[int, int]:
    """Return by what to order gaps, (start, size), so that the last one is the largest, and lowest."""
    return gap[1], -gap[0]


def join_uses(one: Uses, other: Uses) -> Uses:
    """Return the uses of two ranges together: for each stream the later position.

    None adds nothing: an owner for whom it stands for something must `Arena.mark` the gaps before
    it begins to give uses.

    >>> join_uses({1: 5}, {1: 3, 2: 9})
    {1: 5, 2: 9}
    """
    if not one or not other or one is other:
        return one or other
    joined = dict(one)
    for stream, position in other.items():
        if joined.get(stream, -1) < position:
            joined[stream] = position
    return joined
