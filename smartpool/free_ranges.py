"""Free ranges between live blocks, and how scattered they are: the interval-graph part of the live metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["free_ranges", "gaps_between", "interval_fragmentation", "scatter"]


def interval_fragmentation(address: Iterable[int], size: Iterable[int]) -> float:
    """Return how badly the free ranges between live blocks are distributed, in [0, 1).

    What lies below the lowest or above the highest block is not between blocks, and does not count.

    Parameters
    ----------
    address, size
        Of the live blocks, in any order. Blocks of size 0 are passed over; blocks may touch.

    Returns
    -------
    float
        `scatter` of the ranges. O(n log n).

    Examples
    --------
    >>> interval_fragmentation([0, 100], [50, 50])
    0.0
    >>> interval_fragmentation([0, 20, 40], [10, 10, 10])
    0.2
    """
    sizes = [int(nbytes) for nbytes in size]
    return scatter((width for _, width in free_ranges(address, sizes)), sum(sizes))


def free_ranges(address: Iterable[int], size: Iterable[int]) -> list[tuple[int, int]]:
    """Return address and size of each free range between live blocks, ascending, neighbors merged.

    >>> free_ranges([30, 0, 10], [10, 10, 5])
    [(15, 15)]
    """
    found: list[tuple[int, int]] = []
    reach: int | None = None
    for low, width in sorted(
        (int(at), int(nbytes)) for at, nbytes in zip(address, size, strict=True) if nbytes
    ):
        if reach is not None and low > reach:
            found.append((reach, low - reach))
        reach = low + width if reach is None else max(reach, low + width)
    return found


def gaps_between(blocks: Mapping[int, int], gaps: Mapping[int, int]) -> list[int]:
    """Return the sizes of those gaps that lie between blocks, both given as address to size; O(n).

    >>> gaps_between({0: 10, 20: 10}, {10: 10, 30: 34})
    [10]
    """
    if not blocks:
        return []
    low, high = min(blocks), max(blocks)
    return [size for at, size in gaps.items() if low < at < high]


def scatter(free_ranges: Iterable[int], live_bytes: int) -> float:
    """Return the share of memory that is free, times the chance that two free bytes lie in different ranges.

    With live bytes ``L``, and free ranges ``g_1 ... g_k`` that sum to ``G``::

        scatter = G / (L + G) * (1 - sum((g_i / G) ** 2)),   0 where G = 0

    So it is small when little is free however it lies, and near 1 only when most is free and in crumbs.

    >>> scatter([512], 512), scatter([256, 256], 512)
    (0.0, 0.25)
    """
    total, squares = 0, 0
    for size in free_ranges:
        total += size
        squares += size * size
    if not total:
        return 0.0
    return round(total / (live_bytes + total) * (1.0 - squares / (total * total)), 12)
