"""Planned steps: a repetition that was seen before is served from its plan, by index.

Problem: a training step asks for the same blocks in the same order each time. Best fit finds places
for them again and again; a plan knows them.
Method: the first repetition under ``step()`` is recorded: the order of requests, and between which
requests each was freed. Requests that were also freed within the step are intervals, which the
planner colours on a thread of its own. From then on a step has one *region*, a block of the heap
as high as the plan, and each planned request a *slot* in it: a bin of its own that holds its
address while it is free. The i-th request takes the i-th slot if the size is the same; a free
puts the address back, by the pool's ordinary quick path.

Lifetimes may turn out otherwise. A slot that should have been freed before request i, by the plan,
and is still live then, is *late*; a request whose slot overlaps a late one is a miss and is served
by the heap. Slots that are not late are, by the plan, disjoint from slot i. So planned memory that
is still live is never handed out again, whatever the program does, and a step without surprises
pays one comparison a request for it.

Finding back. A request that does not match is served by the heap and counted. If the next one
matches the expected index, it was an extra one. If the last `CONTEXT` requests match the plan
further on, requests are missing, and the step goes on from there. STAlloc (EuroSys 2026) matches by
position alone and never does. When more than `REPLAN_SHARE` of a step missed, the next is recorded
and planned anew.
Bound: O(1) for each request, plus O(late slots); the planner runs on its own thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smartpool.memory.arena import ALIGNMENT
from smartpool.pool.bins import Bin
from smartpool.pool.tiers import tier_of

__all__ = ["CONTEXT", "PlannedStep", "RecordedStep", "SlotBin", "StepPlan", "StepRecordBin", "make_plan"]

CONTEXT: Final = 3
REPLAN_SHARE: Final = 0.02
_CANDIDATES: Final = 64
_PLANNING_SECONDS: Final = 5.0


class SlotBin(Bin):
    """The place of one planned request: holds its address while it is free. Never flushed."""

    __slots__ = ("end", "start")

    def __init__(self, nbytes: int, start: int, size: int, stream: int) -> None:
        super().__init__(nbytes, size, stream, tier_of(nbytes), set())
        self.quiet = False
        self.start = start
        self.end = start + size
        self.append(start)


class StepRecordBin(Bin):
    """The bin of one request of a recorded step: learns when it is freed, then passes it on."""

    __slots__ = ("_home", "_index", "_step")

    def __init__(self, home: Bin, step: RecordedStep, index: int) -> None:
        super().__init__(home.nbytes, home.size, home.stream, home.tier, home.touched)
        self.quiet = False
        self._home = home
        self._step = step
        self._index = index

    def append(self, pointer: int) -> None:
        """Note the free and put the block where it belongs."""
        self._step.freed(self._index)
        home = self._home
        if self.others:
            home = Bin(self.nbytes, self.size, self.stream, self.tier, self.touched)
            home.others = self.others
        home.append(pointer)  # first: see `Bin`
        home.quiet = False
        home.touched.add(home)


class RecordedStep:
    """The requests of one step, and before which request each was freed."""

    def __init__(self) -> None:
        self.nbytes: list[int] = []
        self.freed_before: list[int] = []
        self._open = True

    def requested(self, home: Bin) -> StepRecordBin:
        """Note a request and return the bin to enter for it in the live table."""
        bin_ = StepRecordBin(home, self, len(self.nbytes))
        self.nbytes.append(home.nbytes)
        self.freed_before.append(-1)
        return bin_

    def freed(self, index: int) -> None:
        """Note that the request of that index was freed now."""
        if self._open:
            self.freed_before[index] = len(self.nbytes)

    def close(self) -> None:
        """End the step; what is freed later outlived it."""
        self._open = False


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Where the requests of a step go, relative to the region.

    Attributes
    ----------
    nbytes
        Bytes of each request, in order.
    offsets
        Offset of each in the region; -1 for requests that outlived their step.
    due
        For each request, the requests that are freed before it, by the plan.
    height
        Bytes of the region.
    """

    nbytes: tuple[int, ...]
    offsets: tuple[int, ...]
    due: tuple[tuple[int, ...], ...]
    height: int


def make_plan(step: RecordedStep) -> StepPlan:
    """Colour the intervals of a recorded step. Seconds for large ones: call it off the pool's lock."""
    from smartpool.planner import plan  # noqa: PLC0415 - and with it NumPy, only where steps are planned

    count = len(step.nbytes)
    planned = [index for index in range(count) if step.freed_before[index] >= 0]
    offsets = [-1] * count
    due: list[list[int]] = [[] for _ in range(count + 1)]
    height = 0
    if planned:
        sizes = [_block_bytes(step.nbytes[index]) for index in planned]
        ends = [max(step.freed_before[index], index + 1) for index in planned]
        coloured = plan(planned, ends, sizes, alignment=ALIGNMENT, time_limit=_PLANNING_SECONDS)
        height = int(coloured.height)
        for index, end, offset in zip(planned, ends, coloured.offsets.tolist(), strict=True):
            offsets[index] = offset
            due[end].append(index)
    return StepPlan(tuple(step.nbytes), tuple(offsets), tuple(map(tuple, due)), height)


class PlannedStep:
    """A plan with its region: serves one repetition after the other.

    Parameters
    ----------
    plan
        The plan.
    base
        Address of the region.
    stream
        The stream of the requests.
    """

    def __init__(self, plan: StepPlan, base: int, stream: int) -> None:
        self.plan = plan
        self.base = base
        self.hits = 0
        self.misses = 0
        self._slots = [
            SlotBin(nbytes, base + offset, _block_bytes(nbytes), stream) if offset >= 0 else None
            for nbytes, offset in zip(plan.nbytes, plan.offsets, strict=True)
        ]
        # One look-up a request: what it should ask for, its slot, and the slots that are due before it.
        self._entries = [
            (nbytes, slot, tuple(other for index in due if (other := self._slots[index]) is not None))
            for nbytes, slot, due in zip(plan.nbytes, self._slots, plan.due, strict=False)
        ]
        self._positions: dict[int, list[int]] = {}
        for position, nbytes in enumerate(plan.nbytes):
            self._positions.setdefault(nbytes, []).append(position)
        self._next = 0
        self._late: list[SlotBin] = []
        self._tail: list[int] = []

    @property
    def idle(self) -> bool:
        """Whether no slot is live: the region may be given back."""
        return all(slot is None or slot for slot in self._slots)

    def begin(self) -> None:
        """Start a repetition. Slots that are live still are late from the start."""
        self._next = 0
        self._tail.clear()
        self._late = [slot for slot in self._slots if slot is not None and not slot]
        self.hits = self.misses = 0

    def serve(self, nbytes: int) -> SlotBin | None:
        """Return the slot of the next request, with its address in it, or None for a miss."""
        position, late = self._next, self._late
        if position < len(self._entries) and self._entries[position][0] == nbytes:
            _, slot, due = self._entries[position]
        else:
            found = self._find_back(nbytes)
            if found is None:
                self.misses += 1
                return None
            for _, _, due in self._entries[position:found]:
                late.extend(other for other in due if not other)
            position = found
            _, slot, due = self._entries[position]
        for other in due:
            if not other:
                late.append(other)
        self._next = position + 1
        if self._tail:
            self._tail.clear()
        self.hits += 1
        if slot is None:  # outlived its step when it was recorded: the heap's
            return None
        if late:
            self._late = late = [other for other in late if not other]
        if not slot or (late and any(other.start < slot.end and slot.start < other.end for other in late)):
            self.hits -= 1
            self.misses += 1
            return None
        return slot

    @property
    def must_be_replanned(self) -> bool:
        """Whether the repetition that ended differed too much."""
        asked = self.hits + self.misses
        skipped = len(self.plan.nbytes) - self.hits
        return max(self.misses, skipped) > REPLAN_SHARE * max(asked, len(self.plan.nbytes))

    def _find_back(self, nbytes: int) -> int | None:
        """Return where the plan goes on after missing requests, once the context is clear."""
        tail = self._tail
        tail.append(nbytes)
        if len(tail) < CONTEXT:
            return None
        del tail[:-CONTEXT]
        sizes = self.plan.nbytes
        candidates = (position for position in self._positions.get(nbytes, ()) if position > self._next)
        for position, _ in zip(candidates, range(_CANDIDATES), strict=False):
            first = position - CONTEXT + 1
            if first >= 0 and all(sizes[first + step] == tail[step] for step in range(CONTEXT)):
                return position
        return None


def _block_bytes(nbytes: int) -> int:
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT or ALIGNMENT
