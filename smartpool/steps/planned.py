"""Planned steps: a repetition that was seen before is served from its plan, by index.

Problem: a training step asks for the same blocks in the same order each time. First fit finds places
for them again and again; a plan knows them.
Method: the requests of one repetition, and between which requests each was freed, are intervals,
which the planner colors on a thread of its own. From then on a step has one *region*, a block of
the heap as high as the plan, and each planned request a *slot* in it, an address. While a step is
served, the bins of the planned sizes are replaced by *proxies*: bins whose `pop` takes the next slot
of the plan, if it is of their size. So a planned request goes the pool's ordinary quick path, takes
no lock, and costs one Python call more than a bin; a free is exactly that of a bin, because a proxy
throws away what is put into it: that a slot is live, or free, is written in one place, the table
of live blocks.

*Nothing live is handed out.* With every request comes the list of slots that are *due* before it: by
the plan they were freed. One that is live still is *late*: it is entered among those due before every
request whose slot it overlaps, and such a request is a miss as long as it is live, which the heap
serves. Slots that are neither late nor due are disjoint from the next one by the plan. So lifetimes
may turn out as they like; a step without surprises pays one look-up in the live table for each
free, and that is all.

*Finding back.* A request that does not match is served by the heap and counted. If the next one
matches the expected index, it was an extra one. If the last `CONTEXT` requests match the plan
elsewhere, the step goes on from there. STAlloc (EuroSys 2026) matches by position alone and never
does. When more than `REPLAN_SHARE` of a step missed, it is to be planned anew.

*The seat.* Who may take slots without the lock sits in the step's seat: one thread at a time. A
slow path takes the seat away before it changes anything, and whoever sat there sees that as the
last thing before it takes a slot. Each side first writes and then looks (Dekker's idea), and under
the interpreter's lock that is enough. A step that was recorded on several threads (PyTorch's
backward runs on its own) passes the seat on where the sequence does.

Bound: O(1) for each request, O(requests) for each slot that becomes late; the planner runs on its own
thread.
Rejected: handing memory on from slot to slot when it is freed, so that a request is one `list.pop`
and a free does the work (a marked graph over the overlaps in space): what it saves a request it
costs the free, and a request that is missing holds up all whose memory it would have handed on. One
list a slot, checked under the pool's lock: 3.2 us a request, no less than a search. The seat closed
while any slot is late: 12 us, in a step of which many were.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Final

import numpy as np

from smartpool.errors import InvariantError
from smartpool.heap.arena import ALIGNMENT
from smartpool.pool.bins import enter
from smartpool.steps.plans import StepPlan
from smartpool.steps.region import Region
from smartpool.steps.stand_ins import NOBODY, TAKING, PlannedBin, Seat
from smartpool.units import align_up

if TYPE_CHECKING:
    from smartpool.pool.bins import Bin, LiveTable
    from smartpool.pool.slow_path import SlowPath

__all__ = ["CONTEXT", "LOST", "REPLAN_SHARE", "PlannedStep"]

CONTEXT: Final = 3
"""Requests in a row that must match the plan elsewhere before the step goes on from there."""
LOST: Final = 64
"""Requests in a row, or more misses than hits, after which a step is given up."""
REPLAN_SHARE: Final = 0.02
"""Of the requests of a step that were off, from which it is planned anew."""


class PlannedStep:
    """A plan with its region: serves one repetition after the other.

    Only `PlannedBin.pop` and `use_elsewhere` run without the pool's lock.

    Parameters
    ----------
    name
        The name of the step.
    plan
        The plan.
    base
        Address of a block for its region.
    stream
        The stream of the requests.
    live
        The table of live blocks.
    bin_of
        Returns the bin of a request size on a stream.

    Attributes
    ----------
    region
        Where its slots are.
    left
        Whether it is served no more, and its memory goes back.
    proxies
        What stands in the table of bins while the step is served, by request size.
    position
        The request of the plan that comes next.
    misses
        Requests of this repetition that were not served as planned.
    repetitions, past_hits, past_misses
        Repetitions that have ended, and what they counted.
    changed
        Whether the last repetition differed too much.
    elsewhere
        Slots, live or freed lately, and the other streams that used them.
    """

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        name: str,
        plan: StepPlan,
        base: int,
        stream: int,
        live: LiveTable,
        bin_of: Callable[[int, int], Bin],
    ) -> None:
        self.name = name
        self.plan = plan
        self.region = Region(base, plan.height)
        self.left = False
        self.stream = stream
        self.live = live
        self.proxies = {
            nbytes: PlannedBin(bin_of(nbytes, stream), self) for nbytes in set(plan.sequence.nbytes)
        }
        self._slots = [
            range(base + offset, base + offset + align_up(max(nbytes, 1), ALIGNMENT)) if offset >= 0 else None
            for nbytes, offset in zip(plan.sequence.nbytes, plan.offsets, strict=True)
        ]
        self._addresses = {slot.start for slot in self._slots if slot is not None}
        # One look-up a request: the proxy that it comes through, its slot, and the slots due before it.
        self.entries: list[tuple[PlannedBin | None, int, tuple[int, ...]]] = [
            (
                self.proxies[nbytes] if slot is not None else None,
                slot.start if slot is not None else -1,
                tuple(other.start for index in due if (other := self._slots[index]) is not None),
            )
            for nbytes, slot, due in zip(plan.sequence.nbytes, self._slots, plan.due, strict=False)
        ]
        self._plain = self.entries.copy()  # as long as nobody is late
        self._starts = np.array([slot.start if slot else 0 for slot in self._slots], dtype=np.int64)
        self._stops = np.array([slot.stop if slot else 0 for slot in self._slots], dtype=np.int64)
        self._places: dict[tuple[int, ...], list[int]] = {}  # `CONTEXT` sizes in a row -> where they end
        for last in range(CONTEXT - 1, len(plan.sequence.nbytes)):
            context = plan.sequence.nbytes[last - CONTEXT + 1 : last + 1]
            self._places.setdefault(context, []).append(last)
        self.position = 0
        self.seat = NOBODY  # whose turn it is to take slots without the lock, or nobody's
        self._owner = NOBODY  # who gets the seat back after a slow path
        self._closed = True
        self._late: set[range] = set()
        self._tail: list[int] = []  # sizes of the last requests that were not found, in a row
        self._tail_at = 0  # the position at which they were not
        self._astray = 0  # how many in a row
        self._passed = 0  # positions that went by without being served as planned
        self.misses = 0
        self.repetitions = self.past_hits = self.past_misses = 0
        self.changed = False
        self.elsewhere: dict[int, tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"<PlannedStep: request {self.position} of {len(self.entries)}, {self.hits} hits>"

    @property
    def hits(self) -> int:
        """Requests of this repetition that came as planned; those that the plan leaves to the heap too."""
        return self.position - self._passed

    @property
    def lost(self) -> bool:
        """Whether the program does something else by now."""
        return self._astray > LOST or self.misses > self.hits + LOST

    # ------------------------------------------------------------------ repetitions

    def begin(self) -> None:
        """Let this thread take slots, from the first one on. What is live still is late."""
        if self._owner.busy:
            return  # another thread is in the middle of a request: no harm, the heap serves
        self._owner = Seat(get_ident())
        self._astray = 0
        self._tail.clear()
        self._closed = False
        self._open_seat()

    def end(self) -> None:
        """Serve no more until the next `begin`; the repetition is over. Under the pool's lock."""
        self.close()
        if self.left:
            return
        if self.position or self.misses:
            self._pass_to(len(self.entries))
            surprises = max(self.misses, len(self.entries) - self.hits)
            self._count(surprises, max(self.hits + self.misses, len(self.entries)))
            self._look_who_is_late()

    def close(self) -> None:
        """Serve no more in this repetition. Under the pool's lock."""
        self._closed = True
        self.seat = NOBODY

    def leave(self) -> None:
        """Serve no more at all: `give_back` may follow. Under the pool's lock."""
        self.left = True  # first: it is not begun again, whatever comes in between
        self.close()
        if self.position or self.misses:
            self._count(self.misses, self.hits + self.misses)

    def give_back(self, pool: SlowPath) -> bool:
        """Give back what no slot needs, of a step that was left; return whether that was the last of it."""
        self.close()
        others = {stream for streams in list(self.elsewhere.values()) for stream in streams}
        return self.region.give_back(self._live_slots(), pool, (self.stream, *others))

    def _live_slots(self) -> dict[int, int]:
        """Return address and bytes of the slots that are live, or about to be, of a step that is closed."""
        taking, live = self._owner.busy, self.live  # in this order: see `PlannedBin.pop`
        starts = self._addresses if self.region.is_whole else [address for address, _ in self.region.blocks()]
        found = {start: bin_.size for start in starts if (bin_ := live.get(start)) is not None}
        if taking > TAKING and taking not in found:  # which size of that place is not known
            behind = min((start for start in found if start > taking), default=self.region.end)
            size = max(len(slot) for slot in self._slots if slot is not None and slot.start == taking)
            found[taking] = min(size, behind - taking)
        return found

    def use_elsewhere(self, address: int, stream: int) -> None:
        """Learn that another stream uses a live slot; call it before that slot is freed. Needs no lock."""
        self.elsewhere[address] = (*self.elsewhere.get(address, ()), stream)
        self.seat = NOBODY

    def _count(self, surprises: int, requests: int) -> None:
        """Count a repetition, in which so many of the requests were off."""
        self.changed = surprises > REPLAN_SHARE * requests
        self.repetitions += 1
        self.past_hits += self.hits
        self.past_misses += self.misses
        self.position = self._passed = self.misses = 0

    def _look_who_is_late(self) -> None:
        """Find the slots that are late for the next repetition."""
        late = {slot for slot in self._late if slot.start in self.live}
        if late != self._late:
            self._late.clear()
            self.entries = self._plain.copy()
            for slot in late:
                self._bar(slot)

    # ------------------------------------------------------------------ the slow path

    def serve(self, nbytes: int, wait: Callable[[tuple[int, ...], int], None]) -> int | None:
        """Return the slot of the next request, taken, or None for the heap. Under the pool's lock.

        Parameters
        ----------
        nbytes
            What is asked for.
        wait
            Orders a stream, its second argument, behind all work queued so far on others.
        """
        self.seat = NOBODY
        try:
            if self._owner.busy or self._closed:
                return None  # in the middle of a quick one: a destructor of ours, or another thread
            if self._owner.owner != get_ident() and not self._passes_on(nbytes):
                return None
            position = self._find(nbytes)
            self._order(wait)  # behind the look at what is live: a free enters itself here before it is one
            if position is None:
                return None
            proxy, address, _ = self.entries[position]
            assert proxy is not None
            enter(self.live, address, proxy)
            return address
        finally:
            self._open_seat()

    def _open_seat(self) -> None:
        if self._closed or self.elsewhere:
            return
        self.seat = self._owner
        if self.elsewhere:  # entered meanwhile, by a free on another thread: see `use_elsewhere`
            self.seat = NOBODY

    def _passes_on(self, nbytes: int) -> bool:
        """Let another thread go on where the sequence says that it may."""
        if not self.plan.sequence.shared or self._expected() != nbytes:
            return False
        self._owner = Seat(get_ident())
        return True

    def _expected(self) -> int:
        """Return the size that the next request should have; -1 at the end."""
        nbytes = self.plan.sequence.nbytes
        return nbytes[self.position] if self.position < len(nbytes) else -1

    def _order(self, wait: Callable[[tuple[int, ...], int], None]) -> None:
        """Order our stream behind the use on others of slots that were freed."""
        for address, streams in list(self.elsewhere.items()):
            if address not in self.live:
                wait(streams, self.stream)
                self.elsewhere.pop(address, None)

    def _find(self, nbytes: int) -> int | None:
        """Return the position of a request whose slot can be had, and go on behind it; None for a miss."""
        if self._expected() != nbytes:
            found = self._find_back(nbytes)
            if found is None:
                self._miss()
                return None
            self._go_to(found)
        position = self.position
        self._look_at_due(position)
        self.position = position + 1
        slot = self._slots[position]
        if slot is None:  # outlived its step when it was recorded: the heap's
            self._astray = 0
            return None
        if slot.start in self.live or any(self._is_in(slot, other) for other in self.entries[position][2]):
            self._passed += 1
            self._miss()
            return None
        self._astray = 0
        return position

    def _miss(self) -> None:
        self.misses += 1
        self._astray += 1

    def _look_at_due(self, position: int) -> None:
        """Enter what should be free before the request at `position`, and is not, as late."""
        for index in self.plan.due[position]:
            slot = self._slots[index]
            if slot is not None and slot.start in self.live:
                self._bar(slot)

    def _bar(self, slot: range) -> None:
        """Enter a late slot with those that are due before every request whose slot it overlaps."""
        if slot in self._late:
            return
        self._late.add(slot)
        overlaps = (self._starts < slot.stop) & (slot.start < self._stops)
        for position in np.flatnonzero(overlaps).tolist():
            proxy, address, due = self.entries[position]
            self.entries[position] = (proxy, address, (*due, slot.start))

    def _is_in(self, slot: range, address: int) -> bool:
        """Whether what is live at an address, if anything is, overlaps a slot."""
        bin_ = self.live.get(address)
        return bin_ is not None and slot.start < address + bin_.size and address < slot.stop

    def _pass_to(self, position: int) -> None:
        """Let the requests before `position` go by, of which there may be none."""
        for passed in range(self.position, position):
            self._look_at_due(passed)
        self._passed += position - self.position
        self.position = position
        if position == len(self.entries):
            self._look_at_due(position)

    def _go_to(self, position: int) -> None:
        """Go on from another position: forward, over missing requests, or from an earlier one again."""
        if position >= self.position:
            self._pass_to(position)
        else:
            self._passed -= self.position - position
            self.position = position
            for slot in self._slots:
                if slot is not None and slot.start in self.live:
                    self._bar(slot)

    def check(self) -> None:
        """Prove that live slots are disjoint, in blocks of the region, and late where they should be free."""
        live = self.live.copy()
        held = sorted((address, bin_.size) for address, bin_ in live.items() if self._is_mine(bin_))
        blocks, end = dict(self.region.blocks()), 0
        for address, size in held:
            block = max((start for start in blocks if start <= address), default=0)
            if address < end or not block or address + size > block + blocks[block]:
                raise InvariantError(f"{address:#x} of {size} bytes overlaps in {self!r}: {held} in {blocks}")
            end = address + size
        if self.left:
            return
        due_at = {index: position for position, due in enumerate(self.plan.due) for index in due}
        expected = {slot.start for slot in self._late}
        for index, slot in enumerate(self._slots):
            # Without an end, its place is its own.
            if slot is not None and (index not in due_at or index < self.position <= due_at[index]):
                expected.add(slot.start)
        unknown = {address for address, _ in held} - expected
        if unknown:
            raise InvariantError(f"slots at {unknown} should be free in {self!r}, and are not known as late")

    def _is_mine(self, bin_: Bin) -> bool:
        return isinstance(bin_, PlannedBin) and bin_.step is self

    def _find_back(self, nbytes: int) -> int | None:
        """Return where the plan goes on, once the context is clear: the nearest place ahead, cyclically."""
        tail = self._tail
        if self._tail_at != self.position:  # some were served since
            tail.clear()
            self._astray = 0
            self._tail_at = self.position
        tail.append(nbytes)
        if len(tail) < CONTEXT:
            return None
        del tail[:-CONTEXT]
        places = self._places.get(tuple(tail))
        if not places:
            return None
        ahead = bisect_right(places, self.position)
        return places[ahead] if ahead < len(places) else places[0]
