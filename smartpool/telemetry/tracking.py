"""Exact statistics of requests: current, peak and total, by device, tier, stream, tag and scope.

Problem: peaks need every event in order, for four groupings and any number of nested scopes, at a cost
that one can leave switched on.
Method: a reader of the journal (`pool.telemetry.journal`). A batch of events becomes columns; a stable
sort by group and running sums give each group's current, peak and totals; scopes are slices of the
device's own running sum, because entering and leaving one are events like any other. The label of a
free is that of its request, which a dictionary of labeled live blocks remembers.
Bound: O(n log n) for a batch of n, 0.2 us an event; nothing is lost between batches, so peaks are exact.

What was live before tracking began counts as current, without a tag. Threads that are in the middle of
a request at that very instant may be counted on either side of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smartpool.pool.bins import Bin
from smartpool.telemetry.journal import FIELDS, FOR_EVER, FREED, Journal
from smartpool.telemetry.labels import NOBODY, Label
from smartpool.telemetry.tracked import Counts, ProfileRecord, Tracked
from smartpool.tiers import LARGEST, Tier

__all__ = ["ENTERED", "LEFT", "OTHER_STREAMS", "OTHER_TAGS", "UNTAGGED", "Scope", "Tracker"]

UNTAGGED: Final = "(untagged)"
OTHER_TAGS: Final = "(other tags)"
OTHER_SCOPES: Final = "(other scopes)"
OTHER_STREAMS: Final = -1
MOST_GROUPS: Final = 1000
"""Tags, streams and scopes that have figures of their own; further ones are counted together."""

ENTERED: Final = Label("entered")
LEFT: Final = Label("left")

Integers = NDArray[np.int64]
Numbers = NDArray[np.int16]  # of that size NumPy sorts them by radix
_nbytes: Final = attrgetter("nbytes")
_stream: Final = attrgetter("stream")


class _Group:
    """Figures that go on: a `Counts` that can be changed."""

    __slots__ = Counts.__slots__

    def __init__(self) -> None:
        self.current_bytes = self.peak_bytes = self.total_bytes = 0
        self.current_blocks = self.peak_blocks = self.allocations = self.frees = 0

    def frozen(self) -> Counts:
        return Counts(**{name: getattr(self, name) for name in Counts.__slots__})


class Scope:
    """One stay in a scope on one device. Stands in the journal where events have their bin.

    Attributes
    ----------
    nbytes
        -1: what tells it from a bin.
    """

    __slots__ = ("_before", "_entry_bytes", "_entry_ns", "name", "nbytes", "record", "stream")

    def __init__(self, name: str) -> None:
        self.name = name
        self.nbytes = -1
        self.stream = 0
        self.record = ProfileRecord()
        self._entry_bytes = 0
        self._entry_ns = 0

    def enter(self, live_bytes: int, nanoseconds: int) -> None:
        """Begin, with so much live."""
        self._entry_bytes, self._entry_ns = live_bytes, nanoseconds
        self.record = ProfileRecord(num_calls=1, peak_live_bytes=live_bytes)

    def go_on(self, live: Integers, nbytes: Integers, sign: Integers, until: int) -> None:
        """Take in the next events of the device, up to `until` in nanoseconds: live bytes behind each."""
        before = self.record
        peak = max(before.peak_live_bytes, int(live.max(initial=0)))
        self.record = ProfileRecord(
            num_calls=1,
            memory_peak=peak - self._entry_bytes,
            memory_total=before.memory_total + int(nbytes[sign > 0].sum()),
            peak_live_bytes=peak,
            net_bytes=before.net_bytes + int((nbytes * sign).sum()),
            allocations=before.allocations + int((sign > 0).sum()),
            frees=before.frees + int((sign < 0).sum()),
            seconds=(until - self._entry_ns) * 1e-9,
        )


class Tracker:
    """Statistics of one device's requests. Fed by a `Journal`; may be asked from any thread.

    Parameters
    ----------
    journal
        Where requests are written down; `start` is called once it is.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._since = time.time()
        self._labels: dict[int, Label] = {}  # of the live blocks that have one
        self._total = _Group()
        self._tiers = [_Group() for _ in Tier]
        self._streams: dict[int, _Group] = {}
        self._tags: dict[str, _Group] = {}
        self._tags_at_peak: dict[str, int] = {}
        self._open: list[Scope] = []
        self._profiles: dict[str, ProfileRecord] = {}

    def __repr__(self) -> str:
        return f"<Tracker: {self._total.allocations} requests, {len(self._tags)} tags>"

    # ------------------------------------------------------------------ asking

    def tracked(self, patience_s: float = FOR_EVER) -> Tracked | None:
        """Return the figures up to now; None when another thread reads the journal for longer than that.

        O(groups), and what is new in the journal.
        """
        with self._journal.settled(patience_s) as settled:
            if not settled:
                return None
            return Tracked(
                since=self._since,
                total=self._total.frozen(),
                tiers={tier.value: group.frozen() for tier, group in zip(Tier, self._tiers, strict=True)},
                streams={key: group.frozen() for key, group in self._streams.items()},
                tags={key: group.frozen() for key, group in self._tags.items()},
                tags_at_peak=dict(self._tags_at_peak),
                profiles=dict(self._profiles),
            )

    def labels(self, patience_s: float = FOR_EVER) -> dict[int, Label]:
        """Return the labels of the live blocks that have one, by address: up to now, or as last read."""
        with self._journal.settled(patience_s):
            return self._labels.copy()

    def reset_peaks(self) -> None:
        """Let peaks begin anew, at what is live now."""
        with self._journal.settled():
            for group in self._groups():
                group.peak_bytes, group.peak_blocks = group.current_bytes, group.current_blocks
            self._tags_at_peak = self._tags_now()

    def _groups(self) -> Iterable[_Group]:
        return (self._total, *self._tiers, *self._streams.values(), *self._tags.values())

    def _tags_now(self) -> dict[str, int]:
        return {tag: group.current_bytes for tag, group in self._tags.items() if group.current_bytes}

    # ------------------------------------------------------------------ reading the journal

    def start(self, live: Mapping[int, Bin], early: list[Any]) -> None:
        """Count what was live before.

        Parameters
        ----------
        live
            The table of live blocks, copied when events were already written.
        early
            The events that were written when it was copied. An address that they mention was live
            before if the first of them is its free; of the others the copy tells.
        """
        first: dict[int, tuple[Bin, bool]] = {}
        for pointer, bin_, label in zip(early[::FIELDS], early[1::FIELDS], early[2::FIELDS], strict=True):
            first.setdefault(pointer, (bin_, label is FREED))
        before = [bin_ for pointer, bin_ in live.items() if pointer not in first]
        before += [bin_ for bin_, freed in first.values() if freed]
        if before:
            nbytes = np.fromiter(map(_nbytes, before), np.int64, len(before))
            self._count([NOBODY] * len(before), nbytes, np.ones_like(nbytes), list(map(_stream, before)))
            for group in self._groups():
                group.allocations = group.total_bytes = 0

    def read(self, batch: list[Any]) -> None:
        """Take in a batch of events; see `Journal.readers`."""
        pointers, bins, labels = batch[::FIELDS], batch[1::FIELDS], batch[2::FIELDS]
        nbytes = np.fromiter(map(_nbytes, bins), np.int64, len(bins))
        sign = np.where(np.fromiter(map(id, labels), np.int64, len(labels)) == id(FREED), -1, 1)
        marks = np.flatnonzero(nbytes < 0)
        if marks.size or self._open:
            self._walk_scopes(batch, marks, nbytes, sign)
            kept = np.flatnonzero(nbytes >= 0)
            pointers, bins, labels = ([column[i] for i in kept] for column in (pointers, bins, labels))
            nbytes, sign = nbytes[kept], sign[kept]
        if bins:
            self._find_labels(pointers, labels)
            self._count(labels, nbytes, sign, list(map(_stream, bins)))

    def _find_labels(self, pointers: list[int], labels: list[Label]) -> None:
        """Put in the place of `FREED` the label of the request, in each free."""
        held = self._labels
        if not held and labels.count(NOBODY) + labels.count(FREED) == len(labels):
            return
        for index, (pointer, label) in enumerate(zip(pointers, labels, strict=True)):
            if label is FREED:
                labels[index] = held.pop(pointer, NOBODY)
            elif label is not NOBODY:
                held[pointer] = label
            elif held:
                held.pop(pointer, None)  # whose free was not seen

    def _count(self, labels: list[Label], nbytes: Integers, sign: Integers, streams: list[int]) -> None:
        tags = self._numbered_tags(labels)
        peak_before = self._total.peak_bytes
        at_peak = self._peak_index(nbytes * sign) if len(self._tags) > 1 else -1
        if at_peak >= 0:
            moved = np.bincount(tags[: at_peak + 1], (nbytes * sign)[: at_peak + 1], len(self._tags))
            names = list(self._tags)
            now = {name: self._tags[name].current_bytes + int(moved[i]) for i, name in enumerate(names)}
            self._tags_at_peak = {name: size for name, size in now.items() if size}
        _fold([self._total], None, nbytes, sign)
        _fold(self._tiers, np.searchsorted(LARGEST, nbytes).astype(np.int16), nbytes, sign)
        numbers = self._numbered_streams(streams)
        _fold(list(self._streams.values()), numbers, nbytes, sign)
        _fold(list(self._tags.values()), tags, nbytes, sign)
        if len(self._tags) == 1 and self._total.peak_bytes > peak_before:
            self._tags_at_peak = {next(iter(self._tags)): self._total.peak_bytes}

    def _peak_index(self, signed: Integers) -> int:
        """Return where live bytes exceed their peak so far the most, or -1."""
        live = self._total.current_bytes + np.cumsum(signed)
        index = int(live.argmax())
        return index if live[index] > self._total.peak_bytes else -1

    def _numbered_tags(self, labels: list[Label]) -> Numbers:
        """Return the number of each label's tag, in the order of `_tags`, where new ones are entered."""
        numbers = {name: number for number, name in enumerate(self._tags)}
        by_label: dict[Label, int] = {}
        for label in set(labels):
            name = (UNTAGGED if label is NOBODY or label is FREED else label.tag) or UNTAGGED
            if name not in numbers and len(numbers) >= MOST_GROUPS:
                name = OTHER_TAGS
            number = numbers.setdefault(name, len(numbers))
            if name not in self._tags:
                self._tags[name] = _Group()
            by_label[label] = number
        return _numbered(labels, by_label)

    def _numbered_streams(self, streams: list[int]) -> Numbers:
        """Return the number of each stream, in the order of `_streams`, where new ones are entered."""
        found = {streams[0]} if streams.count(streams[0]) == len(streams) else set(streams)
        for stream in found - self._streams.keys():
            key = stream if len(self._streams) < MOST_GROUPS else OTHER_STREAMS
            self._streams.setdefault(key, _Group())
        number_of = {stream: number for number, stream in enumerate(self._streams)}
        others = number_of.get(OTHER_STREAMS, 0)
        return _numbered(streams, {stream: number_of.get(stream, others) for stream in found})

    # ------------------------------------------------------------------ scopes

    def _walk_scopes(self, batch: list[Any], marks: Integers, nbytes: Integers, sign: Integers) -> None:
        """Give each stretch between two marks to the scopes that are open in it."""
        moved = np.where(nbytes < 0, 0, nbytes)
        direction = np.where(nbytes < 0, 0, sign)
        live = self._total.current_bytes + np.cumsum(moved * direction)
        start = 0
        for end in (*marks.tolist(), len(nbytes)):
            last = end < len(nbytes)
            until = batch[min(end, len(nbytes) - 1) * FIELDS + 3]
            for scope in self._open:
                scope.go_on(live[start:end], moved[start:end], direction[start:end], until)
            if last:
                scope, label = batch[end * FIELDS + 1], batch[end * FIELDS + 2]
                if label is ENTERED:
                    scope.enter(int(live[end]), until)
                    self._open.append(scope)
                elif scope in self._open:
                    self._open.remove(scope)
                    known = scope.name in self._profiles or len(self._profiles) < MOST_GROUPS
                    name = scope.name if known else OTHER_SCOPES
                    self._profiles[name] = self._profiles.get(name, ProfileRecord()).joined(scope.record)
            start = end


def _numbered(keys: list[Any], number_of: dict[Any, int]) -> Numbers:
    """Return the number of each key."""
    if len(number_of) == 1:
        return np.full(len(keys), number_of[keys[0]], np.int16)
    return np.fromiter(map(number_of.__getitem__, keys), np.int16, len(keys))


def _fold(groups: list[_Group], numbers: Numbers | None, nbytes: Integers, sign: Integers) -> None:
    """Add events to the groups of their numbers; None: all to the only one. O(n log n).

    Sorted by group, each group's events are a stretch; a running sum over all, less its value before
    the stretch, is the group's own.
    """
    if numbers is None or numbers.min() == numbers.max():  # nothing to sort
        starts = np.zeros(1, np.int64)
        present = [0 if numbers is None else int(numbers[0])]
    else:
        order = np.argsort(numbers, kind="stable")
        numbers, nbytes, sign = numbers[order], nbytes[order], sign[order]
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        present = numbers[starts].tolist()
    signed = nbytes * sign
    bytes_behind, blocks_behind = np.cumsum(signed), np.cumsum(sign)
    lasts = np.append(starts[1:], len(sign)) - 1
    requested = np.add.reduceat(np.where(sign > 0, nbytes, 0), starts)
    allocations = np.add.reduceat(sign > 0, starts, dtype=np.int64)
    columns = np.stack([
        np.maximum.reduceat(bytes_behind, starts),
        bytes_behind[lasts],
        bytes_behind[starts] - signed[starts],
        np.maximum.reduceat(blocks_behind, starts),
        blocks_behind[lasts],
        blocks_behind[starts] - sign[starts],
        requested,
        allocations,
        lasts + 1 - starts,
    ]).T.tolist()  # fmt: skip
    for number, (top, last, before, most, left, held, total, calls, events) in zip(
        present, columns, strict=True
    ):
        group = groups[number]
        group.peak_bytes = max(group.peak_bytes, group.current_bytes + top - before)
        group.peak_blocks = max(group.peak_blocks, group.current_blocks + most - held)
        group.current_bytes += last - before
        group.current_blocks += left - held
        group.total_bytes += total
        group.allocations += calls
        group.frees += events - calls
