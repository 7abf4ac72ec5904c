"""Instances for the planner's benchmarks: published ones where they lie, recorded traces, and made ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from smartpool.planner import IntervalSet, read_csv

SHARED = Path(os.environ.get("SMARTPOOL_SHARED", Path(__file__).parents[3] / "shared"))

HARD = ("A", "B", "C", "D", "E", "F")
GRAPHS = ("iree_mobilebert", "G_1", "resnet50", "tiny_bert", "bert_base", "pangu_2.6B")


def hard(name: str) -> IntervalSet:
    return read_csv(SHARED / "planner" / f"{name}.1048576.csv")


def graph(name: str) -> IntervalSet:
    return read_csv(SHARED / "planner" / f"{name}.csv")


def trace_names() -> list[str]:
    return sorted(path.stem for path in (SHARED / "traces").glob("*.npz"))


def trace(name: str) -> IntervalSet:
    with np.load(SHARED / "traces" / f"{name}.npz") as columns:
        return IntervalSet.from_events(columns["op"], columns["id"], columns["size"])


def cut(intervals: IntervalSet, *, in_time: bool, share: float, seed: int) -> IntervalSet:
    """Return an instance that fits wherever `intervals` do: a share of them in two pieces."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(len(intervals)) < share)
    length = (intervals.end - intervals.start) if in_time else intervals.size
    rows = rows[length[rows] > 1]
    at = 1 + (rng.random(len(rows)) * (length[rows] - 1)).astype(np.int64)
    start, end, size = intervals.start.copy(), intervals.end.copy(), intervals.size.copy()
    if in_time:
        end[rows] = start[rows] + at
        more = end[rows], intervals.end[rows], size[rows]
    else:
        size[rows] = at
        more = start[rows], end[rows], intervals.size[rows] - at
    return IntervalSet.from_arrays(
        *(np.concatenate([old, new]) for old, new in zip((start, end, size), more, strict=True))
    )


def tiling(count: int, *, capacity: int = 1 << 20, span: int = 1 << 20, seed: int = 0) -> IntervalSet:
    """Return rectangles that fill a capacity for a span of time without a gap: load is capacity, always."""
    rng = np.random.default_rng(seed)
    pieces = [(0, span, 0, capacity)]
    while len(pieces) < count:
        # Larger pieces are cut sooner, across the side that is longer in proportion.
        areas = np.array([(end - start) * (high - low) for start, end, low, high in pieces], np.float64)
        start, end, low, high = pieces.pop(int(rng.choice(len(pieces), p=areas / areas.sum())))
        share = rng.uniform(0.2, 0.8)
        if rng.random() < 0.5 and end - start > 2:
            at = start + 1 + int(share * (end - start - 2))
            pieces += [(start, at, low, high), (at, end, low, high)]
        elif high - low > 2:
            at = low + 1 + int(share * (high - low - 2))
            pieces += [(start, end, low, at), (start, end, at, high)]
        else:
            pieces.append((start, end, low, high))
    table = np.array(pieces, np.int64)[rng.permutation(len(pieces))]
    return IntervalSet.from_arrays(table[:, 0], table[:, 1], table[:, 3] - table[:, 2])


def repeated(
    name: str, times: int, *, sizes: float = 0.05, jitter: int = 0, overlap: int = 0, seed: int = 0
) -> IntervalSet:
    """Return a graph repeated in time, each size changed by up to a share, and each time by some ticks.

    With `overlap` each repetition begins so many ticks before the end of the one before.
    """
    one, rng, scale = graph(name), np.random.default_rng(seed), 16
    span = int(one.end.max() - one.start.min()) - overlap
    columns = []
    for at in range(times):
        factor = 1 + sizes * (2 * rng.random(len(one)) - 1)
        start = one.start * scale + rng.integers(0, jitter * scale + 1, len(one))
        end = one.end * scale + rng.integers(-jitter * scale, jitter * scale + 1, len(one))
        columns.append(
            (
                start + at * span * scale,
                np.maximum(end, start + 1) + at * span * scale,
                np.maximum(1, (one.size * factor).astype(np.int64)),
            )
        )
    return IntervalSet.from_arrays(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def random_intervals(count: int, *, live: int, lifetimes: str, sizes: str, seed: int = 0) -> IntervalSet:
    """Return intervals that begin at random, about `live` of them at once."""
    rng = np.random.default_rng(seed)
    span = count * 10
    start = rng.integers(0, span, count)
    mean = live * span / count
    life = rng.exponential(mean, count) if lifetimes == "exponential" else rng.uniform(1, 2 * mean, count)
    if sizes == "uniform":
        size = rng.integers(1, 1 << 20, count)
    elif sizes == "aligned":
        size = 512 * rng.integers(1, 2048, count)
    elif sizes == "powers":
        size = 1 << rng.integers(9, 27, count)
    else:
        size = np.exp(rng.uniform(np.log(512), np.log(1 << 26), count)).astype(np.int64)
    return IntervalSet.from_arrays(start, start + life.astype(np.int64) + 1, size)
