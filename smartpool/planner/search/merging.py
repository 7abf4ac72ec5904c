"""Bundles: buffers that are placed as one.

Problem: most buffers of a hard instance are pieces of something regular, and a search that moves them
one by one tries every irregular arrangement of the pieces. Two guesses undo the cutting:

- *Stacks.* Buffers of equal span lie directly on one another.
- *Chains.* A buffer that ends where one of equal size begins lies at the same offset, as a tensor does
  that is written in place: the chain is one longer buffer.

Each merge can make the next possible (a stack of two may continue a single one of their total size), and
a wrong one forbids the right ones. All stacks, then all chains, in turn, is quick and mostly right. On few
instants spans are equal by accident, and such stacks spoil what follows. There the quietest instants come
first: where memory is full, and one buffer ends and one begins, they are a chain in every plan, and where one
ends and two begin, or the other way round, the two are neighbours. Every merge makes an instant quieter. What
is noisier is a guess, and looks one step ahead: a chain is better when its span is that of another bundle, a
stack when its size is that of a neighbour in time. The rest is chance, so every restart sees other bundles. A
plan for the bundles is a plan for the buffers; the converse is false, so nothing is proved on bundles.

Source: stacks of equal span are known from strip packing as clusters; chains, and their order, are ours.
Measured, they matter more than anything else: see docs/planner-search.md.

Bound: O(n log n) a round of stacks and chains; by instants, O(n log n) where few buffers share one. Rejected:
the quietest instant without noise (the one wrong guess is then made in every restart).
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import lcm
from typing import Final, TypeAlias

from smartpool.planner.problem import Problem

NOISE: Final = 1.0
"""By up to how many times itself the number of what begins and ends at an instant is overestimated."""

STACKS_FIRST: Final = 0.1
"""How often stacks go before chains at an instant that has both."""

GUESSED: Final = 2.0
"""How much noisier an instant is for stacks that nothing beside them speaks for."""

LOOKED_AT: Final = 8
"""So many partners are compared."""

# What a bundle is made of: a buffer, or two parts and how far the second lies above the first.
Parts: TypeAlias = "int | tuple[Parts, Parts, int]"


class Merge(Enum):
    """How far buffers are merged."""

    NONE = "none"
    STACKS = "stacks"
    ALL = "all stacks, then all chains, in turn until nothing changes"
    QUIET = "stacks and chains at the quietest instant, until nothing changes"


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Buffers that move together: a rectangle of sections by granules."""

    first: int
    last: int
    size: int
    alignment: int
    parts: Parts

    def spread(self, offset: int, offsets: list[int]) -> None:
        """Write the offsets of the buffers in this bundle when it is placed at `offset`."""
        pending: list[tuple[Parts, int]] = [(self.parts, offset)]
        while pending:
            parts, at = pending.pop()
            if isinstance(parts, int):
                offsets[parts] = at
            else:
                pending += [(parts[0], at), (parts[1], at + parts[2])]

    def under(self, other: Bundle) -> Bundle:
        """Return this bundle with another of the same span on it; its size must keep the other aligned."""
        alignment = lcm(self.alignment, other.alignment)
        return Bundle(
            self.first, self.last, self.size + other.size, alignment, (self.parts, other.parts, self.size)
        )

    def before(self, other: Bundle) -> Bundle:
        """Return this bundle continued by another of the same size that begins where it ends."""
        alignment = lcm(self.alignment, other.alignment)
        return Bundle(self.first, other.last, self.size, alignment, (self.parts, other.parts, 0))


def singles(problem: Problem) -> list[Bundle]:
    """Return one bundle for each buffer, in their order."""
    columns = (problem.first, problem.last, problem.size, problem.alignments)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        Bundle(first, last, size, alignment, index)
        for index, (first, last, size, alignment) in enumerate(rows)
    ]


def merge(bundles: list[Bundle], how: Merge, rng: random.Random) -> list[Bundle]:
    """Merge bundles as far as `how` says.

    Examples
    --------
    >>> halves = [Bundle(0, 1, 2, 1, 0), Bundle(0, 1, 2, 1, 1), Bundle(1, 2, 4, 1, 2)]
    >>> [(b.first, b.last, b.size) for b in merge(halves, Merge.ALL, random.Random(0))]
    [(0, 2, 4)]
    """
    if how is Merge.NONE:
        return bundles
    if how is Merge.QUIET:
        return _Merging(bundles, rng).run()
    bundles = _stack(bundles)
    before = 0
    while how is Merge.ALL and before != len(bundles):
        before = len(bundles)
        bundles = _stack(_chain(bundles, rng))
    return bundles


def _stack(bundles: list[Bundle]) -> list[Bundle]:
    """Put bundles of equal span on one another, where alignment allows."""
    stacks: dict[tuple[int, int, int], Bundle] = {}
    for bundle in bundles:
        key = (bundle.first, bundle.last, bundle.alignment)
        below = stacks.get(key)
        if below is None:
            stacks[key] = bundle
        elif below.size % bundle.alignment == 0:
            stacks[key] = below.under(bundle)
        else:
            stacks[bundle.first, bundle.last, -len(stacks)] = bundle
    return list(stacks.values())


def _chain(bundles: list[Bundle], rng: random.Random) -> list[Bundle]:
    """Continue bundles by such of equal size that begin where they end."""
    order = list(bundles)
    rng.shuffle(order)
    order.sort(key=lambda bundle: bundle.first)
    ending: dict[tuple[int, int], list[int]] = {}
    chains: list[Bundle] = []
    for bundle in order:
        waiting = ending.get((bundle.first, bundle.size))
        if waiting:
            place = waiting.pop()
            chains[place] = chains[place].before(bundle)
        else:
            place = len(chains)
            chains.append(bundle)
        ending.setdefault((bundle.last, bundle.size), []).append(place)
    return chains


class _Merging:
    """Bundles by where they begin and end, and the instants that are still to be looked at."""

    def __init__(self, bundles: list[Bundle], rng: random.Random) -> None:
        self.rng = rng
        self.bundles = dict.fromkeys(bundles)  # dicts, as sets have no order that repeats itself
        self.begins: defaultdict[int, dict[Bundle, None]] = defaultdict(dict)
        self.ends: defaultdict[int, dict[Bundle, None]] = defaultdict(dict)
        self.spans = Counter((bundle.first, bundle.last) for bundle in bundles)
        for bundle in bundles:
            self.begins[bundle.first][bundle] = self.ends[bundle.last][bundle] = None
        self.noise: dict[int, float] = {}
        self.agenda: list[tuple[float, int, bool]] = []
        for at in sorted({*self.begins, *self.ends}):
            self._look_at(at)

    def run(self) -> list[Bundle]:
        """Merge at the quietest instant, again and again; guess there once nothing is likely."""
        while self.agenda:
            noise, at, guess = heapq.heappop(self.agenda)
            if noise != self.noise[at]:
                continue  # it was entered again since
            if self.rng.random() < STACKS_FIRST:
                merged = self._stack(at, guess=guess) or self._chain(at)
            else:
                merged = self._chain(at) or self._stack(at, guess=guess)
            if merged:
                self._look_at(at)
            elif not guess and max(len(self.begins[at]), len(self.ends[at])) > 1:
                self._enter(GUESSED * noise, at, guess=True)
        return list(self.bundles)

    def _look_at(self, at: int) -> None:
        count = len(self.begins[at]) + len(self.ends[at])
        self._enter((1 + NOISE * self.rng.random()) * count, at, guess=False)

    def _enter(self, noise: float, at: int, *, guess: bool) -> None:
        self.noise[at] = noise
        heapq.heappush(self.agenda, (noise, at, guess))

    def _stack(self, at: int, *, guess: bool) -> bool:
        """Put bundles of equal span that begin or end here on one another, where likely, or by chance."""
        merged = False
        for side in (self.begins[at], self.ends[at]):
            spans: defaultdict[tuple[int, int], list[Bundle]] = defaultdict(list)
            for bundle in side if len(side) > 1 else ():
                spans[bundle.first, bundle.last].append(bundle)
            if len(spans) == len(side):
                continue
            for (first, last), group in spans.items():
                if len(group) == 1:
                    continue
                self.rng.shuffle(group)
                beside = {other.size for other in (*self.ends[first], *self.begins[last])}
                chosen = _adding_up(group, beside)
                if not chosen and (guess or len(group) == len(side)):
                    chosen = group[: 2 + len(group) // LOOKED_AT]
                for two in chosen[1:]:
                    one = chosen[0]
                    if one.size % two.alignment == 0:
                        chosen[0] = one.under(two)
                    elif two.size % one.alignment == 0:
                        chosen[0] = two.under(one)
                    else:
                        continue
                    self._replace(one, two, chosen[0])
                    merged = True
        return merged

    def _chain(self, at: int) -> bool:
        """Continue what ends here by what begins here with the same size."""
        if not self.ends[at] or not self.begins[at]:
            return False
        ending: defaultdict[int, list[Bundle]] = defaultdict(list)
        for bundle in self.ends[at]:
            ending[bundle.size].append(bundle)
        beginning = [bundle for bundle in self.begins[at] if bundle.size in ending]
        self.rng.shuffle(beginning)
        merged = False
        for two in beginning:
            waiting = ending[two.size]
            if waiting:
                one = self._best(waiting, lambda other: self.spans[other.first, two.last] > 0)  # noqa: B023
                waiting.remove(one)
                self._replace(one, two, one.before(two))
                merged = True
        return merged

    def _best(self, partners: list[Bundle], good: Callable[[Bundle], bool]) -> Bundle:
        """Return one of some partners by chance, if possible a good one."""
        if len(partners) == 1:
            return partners[0]
        some = self.rng.sample(partners, min(LOOKED_AT, len(partners)))
        return next(filter(good, some), some[0])

    def _replace(self, one: Bundle, two: Bundle, whole: Bundle) -> None:
        """Take a bundle for the two that it is made of."""
        for part in (one, two):
            del self.bundles[part], self.begins[part.first][part], self.ends[part.last][part]
            self.spans[part.first, part.last] -= 1
        self.bundles[whole] = self.begins[whole.first][whole] = self.ends[whole.last][whole] = None
        self.spans[whole.first, whole.last] += 1
        self._look_at(whole.first)
        self._look_at(whole.last)


def _adding_up(group: list[Bundle], beside: set[int]) -> list[Bundle]:
    """Return some bundles whose sizes add up to one of those beside them, or none."""
    sums: dict[int, tuple[Bundle, ...]] = {0: ()}
    for bundle in group[:LOOKED_AT]:
        for total, parts in list(sums.items()):
            if parts and total + bundle.size in beside:
                return [*parts, bundle]
            sums.setdefault(total + bundle.size, (*parts, bundle))
    return []
