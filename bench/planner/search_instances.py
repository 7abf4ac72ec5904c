"""Hard instances for the exact search: tilings of the whole capacity, and variants of given ones.

Every generator returns columns (start, end, size) that fit their capacity by construction, in a random
order. A tiling leaves no slack anywhere.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Rectangle = tuple[int, int, int, int]  # start, end, low, high


@dataclass(frozen=True, slots=True)
class Columns:
    """One instance."""

    start: np.ndarray
    end: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.size)


def read(path: Path) -> Columns:
    """Read `id,lower,upper,size`."""
    with path.open(newline="") as file:
        rows = [(int(row["lower"]), int(row["upper"]), int(row["size"])) for row in csv.DictReader(file)]
    return Columns(*np.array(rows, dtype=np.int64).T)


def guillotine(rng: np.random.Generator, count: int, capacity: int, time: int) -> Columns:
    """Cut a rectangle `count - 1` times from edge to edge, the piece to cut drawn by its area."""
    pieces: list[Rectangle] = [(0, time, 0, capacity)]
    while len(pieces) < count:
        area = np.array([float(e - s) * float(h - lo) for s, e, lo, h in pieces])
        start, end, low, high = pieces.pop(int(rng.choice(len(pieces), p=area / area.sum())))
        in_time = rng.random() < 0.5
        if in_time and end - start > 1:
            cut = int(rng.integers(start + 1, end))
            pieces += [(start, cut, low, high), (cut, end, low, high)]
        elif not in_time and high - low > 1:
            cut = int(rng.integers(low + 1, high))
            pieces += [(start, end, low, cut), (start, end, cut, high)]
        else:
            pieces.append((start, end, low, high))
    return _shuffled(rng, pieces)


def turnover(rng: np.random.Generator, count: int, capacity: int, live: int) -> Columns:
    """Let a memory that is always full turn over: at each instant some neighbours leave, others come.

    Not made by cuts from edge to edge, so that no sequence of merges puts it together again.
    """
    bounds = np.sort(rng.choice(np.arange(1, capacity), live - 1, replace=False)).tolist()
    current = [(0, low, high) for low, high in zip([0, *bounds], [*bounds, capacity], strict=True)]
    done: list[Rectangle] = []
    now = 0
    while len(done) + len(current) < count:
        now += 1
        width = int(rng.integers(1, 4))
        at = int(rng.integers(0, len(current) - width + 1)) if len(current) > width else 0
        leaving = current[at : at + width]
        done += [(start, now, low, high) for start, low, high in leaving]
        low, high = leaving[0][1], leaving[-1][2]
        coming = int(rng.integers(1, min(3, high - low) + 1))
        cuts = np.sort(rng.choice(np.arange(low + 1, high), coming - 1, replace=False)).tolist()
        current[at : at + width] = [(now, a, b) for a, b in zip([low, *cuts], [*cuts, high], strict=True)]
    done += [(start, now + 1, low, high) for start, low, high in current]
    return _shuffled(rng, done)


def cut_sizes(rng: np.random.Generator, columns: Columns, share: float, grain: int = 1024) -> Columns:
    """Cut a share of the buffers into two that lie on one another."""
    return _cut(rng, columns, share, lambda s, e, z: _halves(rng, s, e, z, grain))


def cut_times(rng: np.random.Generator, columns: Columns, share: float) -> Columns:
    """Cut a share of the buffers into two that follow one another."""

    def halves(start: int, end: int, size: int) -> list[tuple[int, int, int]]:
        if end - start < 2:
            return [(start, end, size)]
        cut = int(rng.integers(start + 1, end))
        return [(start, cut, size), (cut, end, size)]

    return _cut(rng, columns, share, halves)


def side_by_side(rng: np.random.Generator, parts: list[Columns], overlap: int = 0) -> Columns:
    """Put instances after one another in time."""
    shifted, at = [], 0
    for part in parts:
        shifted.append((part.start + at, part.end + at, part.size))
        at += int(part.end.max()) - overlap
    return _permuted(rng, *(np.concatenate(column) for column in zip(*shifted, strict=True)))


def on_top(rng: np.random.Generator, parts: list[Columns]) -> Columns:
    """Put instances on one another: the capacities add up."""
    columns = ([part.start for part in parts], [part.end for part in parts], [part.size for part in parts])
    return _permuted(rng, *(np.concatenate(column) for column in columns))


def _halves(
    rng: np.random.Generator, start: int, end: int, size: int, grain: int
) -> list[tuple[int, int, int]]:
    if size < 2 * grain:
        return [(start, end, size)]
    cut = int(rng.integers(1, size // grain)) * grain
    return [(start, end, cut), (start, end, size - cut)]


def _cut(
    rng: np.random.Generator,
    columns: Columns,
    share: float,
    cut: Callable[[int, int, int], list[tuple[int, int, int]]],
) -> Columns:
    rows: list[tuple[int, int, int]] = []
    for row in zip(columns.start.tolist(), columns.end.tolist(), columns.size.tolist(), strict=True):
        rows += cut(*row) if rng.random() < share else [row]
    return _permuted(rng, *np.array(rows, dtype=np.int64).T)


def _shuffled(rng: np.random.Generator, pieces: list[Rectangle]) -> Columns:
    table = np.array(pieces, dtype=np.int64)
    return _permuted(rng, table[:, 0], table[:, 1], table[:, 3] - table[:, 2])


def _permuted(rng: np.random.Generator, start: np.ndarray, end: np.ndarray, size: np.ndarray) -> Columns:
    order = rng.permutation(len(size))
    return Columns(start[order], end[order], size[order])


def perturbed(rng: np.random.Generator, columns: Columns, share: float) -> Columns:
    """Change every size by a normal deviate of this share."""
    size = columns.size * (1 + share * rng.standard_normal(len(columns)))
    return Columns(columns.start, columns.end, np.maximum(1, size.astype(np.int64)))


def larger(folder: Path) -> Iterator[tuple[str, Columns]]:
    """Yield instances of 18,000 to 62,000 intervals made of the real ones in a folder."""
    rng = np.random.default_rng(5)
    resnet, bert, pangu = (read(folder / f"{name}.csv") for name in ("resnet50", "bert_base", "pangu_2.6B"))
    yield "pangu_2.6B, sizes +-2 %", perturbed(rng, pangu, 0.02)
    yield "pangu_2.6B, half cut in time", cut_times(rng, pangu, 0.5)
    yield "resnet50 x 28, +-1 %", side_by_side(rng, [perturbed(rng, resnet, 0.01) for _ in range(28)])
    yield (
        "resnet50 x 28, +-1 %, overlapping",
        side_by_side(rng, [perturbed(rng, resnet, 0.01) for _ in range(28)], overlap=200),
    )
    yield "bert_base x 11", side_by_side(rng, [bert] * 11)
    yield "bert_base x 11, +-1 %", side_by_side(rng, [perturbed(rng, bert, 0.01) for _ in range(11)])
    yield "pangu_2.6B x 3", side_by_side(rng, [pangu] * 3)
    yield "pangu_2.6B x 3, +-1 %", side_by_side(rng, [perturbed(rng, pangu, 0.01) for _ in range(3)])
    yield "pangu_2.6B x 3, overlapping", side_by_side(rng, [pangu] * 3, overlap=3000)
