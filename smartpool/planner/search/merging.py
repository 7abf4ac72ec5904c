"""Bundles: buffers that are placed as one.

Problem: most buffers of a hard instance are pieces of something regular, and a search that moves them
one by one tries every irregular arrangement of the pieces. Two guesses undo the cutting:

- *Stacks.* Buffers of equal span lie directly on one another.
- *Chains.* A buffer that ends where one of equal size begins lies at the same offset, as a tensor does
  that is written in place: the chain is one longer buffer.

Each merge can make the next possible (a stack of two may continue a single one of their total size),
so stacks and chains are formed in turn until nothing changes. Which buffer continues which is drawn at
random where there is a choice, so every restart sees other bundles. A plan for the bundles is a plan
for the buffers; the converse is false, so nothing is proved on bundles.

Source: stacks of equal span are known from strip packing as clusters; chains are ours. Measured on
MiniMalloc's instances A to F they matter more than anything else: see docs/planner-search.md.

Bound: O(n log n) a round, and a round with no merge is the last.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from math import lcm
from typing import Final, TypeAlias

from smartpool.planner.search.instance import Instance

SOME: Final = 0.8

# What a bundle is made of: a buffer, or two parts and how far the second lies above the first.
Parts: TypeAlias = "int | tuple[Parts, Parts, int]"


class Merge(Enum):
    """How far buffers are merged."""

    NONE = "none"
    STACKS = "stacks"
    CHAINS = "stacks, then chains"
    ALL = "stacks and chains until nothing changes"
    SOME = "the same, but each chain by chance only"


@dataclass(frozen=True, slots=True)
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


def singles(instance: Instance) -> list[Bundle]:
    """Return one bundle for each buffer, in their order."""
    columns = (instance.first, instance.last, instance.size, instance.alignment)
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
    bundles = _stack(bundles)
    if how is Merge.STACKS:
        return bundles
    chance = SOME if how is Merge.SOME else 1.0
    bundles = _chain(bundles, rng, chance)
    while how is not Merge.CHAINS:
        before = len(bundles)
        bundles = _chain(_stack(bundles), rng, chance)
        if len(bundles) == before:
            break
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
            stacks[key] = Bundle(
                bundle.first,
                bundle.last,
                below.size + bundle.size,
                bundle.alignment,
                (below.parts, bundle.parts, below.size),
            )
        else:
            stacks[bundle.first, bundle.last, -len(stacks)] = bundle
    return list(stacks.values())


def _chain(bundles: list[Bundle], rng: random.Random, chance: float) -> list[Bundle]:
    """Continue bundles by such of equal size that begin where they end."""
    order = list(bundles)
    rng.shuffle(order)
    order.sort(key=lambda bundle: bundle.first)
    ending: dict[tuple[int, int], list[int]] = {}
    chains: list[Bundle] = []
    for bundle in order:
        waiting = ending.get((bundle.first, bundle.size))
        if waiting and (chance == 1.0 or rng.random() < chance):
            place = waiting.pop()
            chain = chains[place]
            chains[place] = Bundle(
                chain.first,
                bundle.last,
                bundle.size,
                lcm(chain.alignment, bundle.alignment),
                (chain.parts, bundle.parts, 0),
            )
        else:
            place = len(chains)
            chains.append(bundle)
        ending.setdefault((bundle.last, bundle.size), []).append(place)
    return chains
