"""The arena against a naive model: one byte of bookkeeping for each 512 of memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smartpool.errors import InvariantError
from smartpool.heap.arena import ALIGNMENT, Arena, Range, join_uses, side_by_side
from smartpool.heap.large_gaps import LEAF

UNITS = 96


class ArenaMachine(RuleBasedStateMachine):
    """The model is a string of cells: None where not lent, 0 where free, a block's number where live."""

    def __init__(self):
        super().__init__()
        self.arena = Arena(apart=8 * ALIGNMENT)
        self.cells = [None] * UNITS
        self.blocks = {}
        self.seams = set()
        self.uses = {}

    def runs(self):
        """Maximal free runs of the model, cut at seams."""
        runs, start = [], None
        for cell in range(UNITS + 1):
            free = cell < UNITS and self.cells[cell] == 0
            if start is not None and (not free or cell in self.seams):
                runs.append((start, cell - start))
                start = None
            if free and start is None:
                start = cell
        return runs

    @rule(start=st.integers(0, UNITS - 1), length=st.integers(1, 24), barrier=st.booleans())
    def extend(self, start, length, barrier):
        length = min(length, UNITS - start)
        if any(cell is not None for cell in self.cells[start : start + length]):
            return
        self.arena.extend(start * ALIGNMENT, length * ALIGNMENT, barrier=barrier)
        self.cells[start : start + length] = [0] * length
        if barrier:
            self.seams |= {start, start + length}

    @rule(length=st.integers(1, 12), shift=st.integers(0, 3))
    def allocate(self, length, shift):
        alignment = 1 << shift
        start = self.arena.allocate(length * ALIGNMENT, alignment * ALIGNMENT)
        fits = [(size, run) for run, size in self.runs() if run + (-run % alignment) + length <= run + size]
        if start is None:
            assert not fits
            return
        cell = start // ALIGNMENT
        assert start % (alignment * ALIGNMENT) == 0
        assert self.cells[cell : cell + length] == [0] * length
        size, run = next((size, run) for size, run in fits if run <= cell < run + size)
        if size >= 8:
            assert not [size for size, _ in fits if size < 8] or length >= 8  # small gaps first
            assert run == min(run for size, run in fits if size >= 8)  # then the lowest
        self.cells[cell : cell + length] = [cell + 1] * length
        for unit in range(cell, cell + length):  # who takes a gap waits for its uses
            self.uses.pop(unit, None)
        self.blocks[cell] = length

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), stream=st.none() | st.integers(0, 2), position=st.integers(0, 9))
    def free(self, data, stream, position):
        cell = data.draw(st.sampled_from(sorted(self.blocks)))
        length = self.blocks.pop(cell)
        uses = None if stream is None else {stream: position}
        assert self.arena.free(cell * ALIGNMENT, uses) == length * ALIGNMENT
        self.cells[cell : cell + length] = [0] * length
        if uses:
            for unit in range(cell, cell + length):
                self.uses[unit] = join_uses(self.uses.get(unit), uses)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), again=st.booleans())
    def split(self, data, again):
        """A block becomes several; `again`, they become one."""
        cell = data.draw(st.sampled_from(sorted(self.blocks)))
        length = self.blocks.pop(cell)
        cuts = sorted(data.draw(st.sets(st.integers(1, max(1, length - 1)), max_size=4)) - {length})
        sizes = [after - before for before, after in pairwise((0, *cuts, length))]
        parts = side_by_side(cell * ALIGNMENT, [size * ALIGNMENT for size in sizes])
        self.arena.split(parts)
        if again:
            self.arena.rejoin(Range(cell * ALIGNMENT, length * ALIGNMENT))
            self.arena.rejoin(Range(cell * ALIGNMENT, (length + 1) * ALIGNMENT))  # ends elsewhere
            sizes = [length]
        for size in sizes:
            self.blocks[cell] = size
            self.cells[cell : cell + size] = [cell + 1] * size
            cell += size

    @rule(cell=st.integers(0, UNITS - 1))
    def free_what_is_no_block(self, cell):
        if cell not in self.blocks:
            with pytest.raises(KeyError):
                self.arena.free(cell * ALIGNMENT)

    @rule(data=st.data())
    def retract(self, data):
        runs = [run for run in self.runs() if not self.seams & set(range(run[0], sum(run) + 1))]
        if not runs:
            return
        run, size = data.draw(st.sampled_from(runs))
        start = data.draw(st.integers(run, run + size - 1))
        length = data.draw(st.integers(1, run + size - start))
        gap = self.arena.gap_at(run * ALIGNMENT)
        self.arena.retract(gap, start * ALIGNMENT, length * ALIGNMENT)
        self.cells[start : start + length] = [None] * length
        for unit in range(start, start + length):
            self.uses.pop(unit, None)

    @invariant()
    def agrees(self):
        self.arena.check()
        assert [(gap.start // ALIGNMENT, gap.size // ALIGNMENT) for gap in self.arena.gaps()] == self.runs()
        lent = sum(cell is not None for cell in self.cells)
        assert self.arena.extent_bytes == lent * ALIGNMENT
        assert self.arena.live_bytes == sum(self.blocks.values()) * ALIGNMENT

    @invariant()
    def no_use_is_lost(self):
        """Whoever may still touch a free unit is named by the gap that holds it."""
        for gap in self.arena.gaps():
            named = self.arena.uses_of(gap) or {}
            for unit in range(gap.start // ALIGNMENT, gap.end // ALIGNMENT):
                for stream, position in (self.uses.get(unit) or {}).items():
                    assert named.get(stream, -1) >= position


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.randoms())
def test_everything_freed_is_one_gap_again(sizes, random):
    arena = Arena()
    arena.extend(0, sum(sizes) * ALIGNMENT)
    starts = [arena.allocate(size * ALIGNMENT) for size in sizes]
    assert None not in starts
    random.shuffle(starts)
    for start in starts:
        arena.free(start)
    assert arena.gaps() == [Range(0, sum(sizes) * ALIGNMENT)]


def test_many_gaps_come_at_once_while_a_large_request_is_served():
    """A block that lies elsewhere in many pieces is freed, and there are more gaps than one list holds."""
    arena = Arena(ALIGNMENT)
    arena.extend(0, 4 * LEAF * ALIGNMENT)
    starts = [arena.allocate(ALIGNMENT) for _ in range(3 * LEAF)]

    def free_pieces(_start, _uses):
        for start in starts[: 2 * LEAF : 2]:
            arena.free(start)
        for start in starts[-7::2]:
            arena.free(start)

    freed = [starts[2 * LEAF + 1], -1, starts[2 * LEAF + 5]]
    assert arena.serve(3 * LEAF * ALIGNMENT, freed, free_pieces) is None
    assert freed == []
    arena.check()
    arena.free_all([[block.start for block in arena.blocks()]], None, pytest.fail)
    assert arena.gaps() == [Range(0, 4 * LEAF * ALIGNMENT)]


def test_mark_reaches_every_gap():
    arena = Arena()
    arena.extend(0, 8192)
    block = arena.allocate(512)
    arena.free(block, {1: 4})
    arena.mark({0: 7})
    assert arena.uses_of(arena.largest_gap) == {0: 7, 1: 4}


def test_retract_of_live_memory_is_refused():
    arena = Arena()
    arena.extend(0, 4096)
    arena.allocate(1024)
    with pytest.raises(InvariantError):
        arena.retract(Range(0, 4096), 0, 4096)
    arena.check()


@pytest.mark.parametrize("damage", ["live_bytes", "extent_bytes"])
def test_check_finds_wrong_totals(damage):
    arena = Arena()
    arena.extend(0, 4096)
    arena.allocate(1024)
    setattr(arena, damage, 5)
    with pytest.raises(InvariantError):
        arena.check()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "free", "free", "bundle", "grow"]),
            st.integers(0, 10**6),
            st.integers(1, 24),
        ),
        max_size=150,
    ),
    st.sampled_from([2, 4, 1000]),
)
@settings(deadline=None)
def test_the_written_out_paths_place_as_the_plain_ones(program, leaf):
    """An arena whose gaps have a use goes through `find`, `place` and `join`, and few large gaps do not.

    A bundle of blocks is freed as one, elsewhere: many gaps come at once.
    """
    apart = 8 * ALIGNMENT
    bundles = {}

    def free_bundle(start, uses):
        for member in bundles.pop(start):
            quick.free(member, uses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smartpool.heap.large_gaps.LEAF", leaf)
        patch.setattr("smartpool.heap.arena.LEAF", leaf)
        quick, plain = Arena(apart), Arena(apart)
        for arena in (quick, plain):
            arena.extend(0, 400 * ALIGNMENT)
            arena.extend(1000 * ALIGNMENT, ALIGNMENT, uses={9: 9} if arena is plain else None)
        live, freed, edge, holes = [], [], 400, []
        for what, pick, units in program:
            if what == "grow" and edge < 900:
                if holes and pick % 2:
                    start, length = holes.pop(pick % len(holes))
                else:
                    start, length = edge + pick % 3, units
                    holes += [(edge, start - edge)] if start > edge else []
                    edge = start + length
                room = quick.room_before(start * ALIGNMENT)
                assert room == sum(gap.size for gap in [quick.gap_before(start * ALIGNMENT)] if gap)
                quick.free_all([freed], None, free_bundle)  # before: as in a search that found nothing
                room = quick.room_before(start * ALIGNMENT)
                block = (1 + pick % (length + room // ALIGNMENT)) * ALIGNMENT
                grown = start * ALIGNMENT, length * ALIGNMENT
                taken = quick.extend_for(*grown, block)
                assert taken == plain.place(plain.extend(*grown), block)
                live.append([taken])
            elif what == "take" or not live:
                start = quick.serve(units * ALIGNMENT, freed, free_bundle)
                assert freed == []
                found = plain.find(units * ALIGNMENT)
                assert start == (None if found is None else plain.place(found, units * ALIGNMENT))
                live += [] if start is None else [[start]]
            elif what == "bundle":
                live, members = live[units:], live[:units]
                live.append([start for bundle in members for start in bundle])
            else:
                members = live.pop(pick % len(live))
                handle = members[0] if len(members) == 1 else -1 - members[0]
                bundles[handle] = members
                freed.append(handle)
                for start in members:
                    plain.free(start)
            quick.check()
            plain.check()
        quick.free_all([freed], None, free_bundle)
        assert quick.gaps() == plain.gaps()
        assert quick.extent_bytes == plain.extent_bytes


@given(
    before=st.integers(0, 20),
    added=st.integers(1, 20),
    behind=st.integers(0, 20),
    share=st.floats(0, 1),
    others=st.integers(0, 5),
    leaf=st.sampled_from([1, 4, 1000]),
)
def test_growing_for_a_block_is_growing_and_placing(before, added, behind, share, others, leaf):
    """Between gaps of any sizes, small and large, and beside others."""
    arenas = []
    for _ in range(2):
        arena = Arena(apart=8 * ALIGNMENT)
        for number in range(others):
            arena.extend((1000 + 100 * number) * ALIGNMENT, 30 * ALIGNMENT)
        arena.extend(0, 100 * ALIGNMENT)
        arena.place_at(arena.gap_at(0), 0, (100 - before) * ALIGNMENT)
        arena.extend((100 + added) * ALIGNMENT, 100 * ALIGNMENT)
        gap = arena.gap_at((100 + added) * ALIGNMENT)
        arena.place_at(gap, (100 + added + behind) * ALIGNMENT, (100 - behind) * ALIGNMENT)
        arenas.append(arena)
    quick, plain = arenas
    room = before + added + behind
    block = (1 + int(share * (room - 1))) * ALIGNMENT
    grown = 100 * ALIGNMENT, added * ALIGNMENT
    assert quick.room_before(grown[0]) == before * ALIGNMENT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smartpool.heap.arena.LEAF", leaf)
        start = quick.extend_for(*grown, block)
    assert start == plain.place(plain.extend(*grown), block) == (100 - before) * ALIGNMENT
    quick.check()
    assert (quick.gaps(), quick.blocks()) == (plain.gaps(), plain.blocks())
