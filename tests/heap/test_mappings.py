"""Mappings: one table of what is mapped, whatever the driver refuses, and when an interrupt comes."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartpool.containers.range_map import Range
from smartpool.driver.model import ModelDriver
from smartpool.errors import DriverError, DriverOutOfMemoryError, InvariantError
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.mappings import Mapping, Mappings, State
from smartpool.units import MiB

UNIT = 2 * MiB
CAPACITY = 32 * UNIT
CALLS = ("create_chunk", "map_chunk", "enable_access", "unmap", "release_chunk", "reserve", "memory_info")


def open_mappings(capacity=CAPACITY):
    driver = ModelDriver(capacity)
    memory = DeviceMemory(driver, capacity)
    return driver, memory, Mappings(memory, primary=True), Mappings(memory, primary=False)


def grow(chunks, *units):
    sizes = [unit * UNIT for unit in units]
    free, start = chunks.find(sum(sizes), UNIT)
    chunks.map(free, start, sizes)
    return start


class MappingsMachine(RuleBasedStateMachine):
    """Calls of the driver fail or are interrupted: what it holds is in the tables."""

    def __init__(self):
        super().__init__()
        self.driver, self.memory, self.chunks, self.aliases = open_mappings()
        self.shown = []  # ranges of aliases

    @initialize()
    def begin(self):
        grow(self.chunks, 1, 2)

    def attempt(self, call, data):
        """Make a call, in which one of the driver's may fail, twice in a row, or be interrupted."""
        error = data.draw(st.sampled_from([None, None, DriverError, KeyboardInterrupt()]))
        if data.draw(st.booleans()):
            self.driver.faults.fail(
                data.draw(st.sampled_from(CALLS)),
                nth=data.draw(st.integers(1, 3)),
                times=data.draw(st.integers(1, 2)),
                error=error,
            )
        try:
            return call()
        except DriverError:
            return None
        except KeyboardInterrupt:
            self.driver.faults.clear()
            self.aliases.mend(self.shown)
            for alias in self.aliases:
                if not any(start <= alias.start < start + size for start, size in self.shown):
                    alias.state = State.DOUBTFUL
            self.aliases.settle(self.shown)
            self.chunks.mend()
            self.chunks.settle()
            return None
        finally:
            self.driver.faults.clear()

    @rule(units=st.lists(st.integers(1, 4), min_size=1, max_size=6), data=st.data())
    def grow(self, units, data):
        self.settle()
        before, held = [*self.chunks], self.memory.reserved_bytes
        made = self.attempt(lambda: grow(self.chunks, *units), data)
        if made is None:
            assert [*self.chunks] == before
            self.settle()
            assert self.memory.reserved_bytes == held
        else:
            end = made + sum(units) * UNIT
            assert [item.size for item in self.chunks.table.inside(made, end)] == [u * UNIT for u in units]

    @precondition(lambda self: [*self.chunks])
    @rule(data=st.data())
    def show(self, data):
        seen = data.draw(st.lists(st.sampled_from([*self.chunks]), min_size=1, max_size=5))
        sizes = [chunk.size for chunk in seen]

        def map_them():
            free, start = self.aliases.find(sum(sizes), UNIT)
            self.aliases.map(free, start, sizes, [chunk.chunk for chunk in seen])
            self.shown.append(Range(start, sum(sizes)))

        self.attempt(map_them, data)

    @precondition(lambda self: self.shown)
    @rule(data=st.data())
    def hide(self, data):
        part = data.draw(st.sampled_from(self.shown))

        def unmap_them():
            here = self.aliases.table.inside(part.start, part.end)
            self.aliases.unmap(here)
            self.shown.remove(part)
            for alias in here:
                self.aliases.drop(alias, addresses=False)
            self.aliases.give(*part)  # those, too, whose aliases a failure took before

        self.attempt(unmap_them, data)

    @precondition(lambda self: [*self.chunks])
    @rule(data=st.data())
    def release(self, data):
        chunk = data.draw(st.sampled_from([*self.chunks]))
        if any(alias.chunk == chunk.chunk for alias in self.aliases.table):
            return

        def release_it():
            self.chunks.unmap([chunk])
            self.chunks.drop(chunk)

        self.attempt(release_it, data)

    @rule()
    def settle(self):
        self.aliases.settle(self.shown)
        self.chunks.settle()
        assert len(self.chunks) == len([*self.chunks])

    @invariant()
    def the_table_is_what_the_driver_has(self):
        held = self.driver.held()
        assert held["chunks"] == len(self.chunks.table)
        assert held["chunk_bytes"] == self.memory.reserved_bytes <= self.memory.peak_reserved_bytes
        there = {tuple(item) for item in self.driver.mapped(0, 1 << 62)}
        for book in (self.chunks, self.aliases):
            noted = {(m.start, m.size, m.chunk): m.state for m in book.table}
            assert there.issuperset(item for item, state in noted.items() if state is State.MAPPED)
            there -= noted.keys()
        assert not there, "mapped, and in no table"
        left = [Range(a.start, a.size) for a in self.aliases.table if a.state is not State.MAPPED]
        self.chunks.check()
        self.aliases.check([*self.shown, *left])

    def teardown(self):
        for part in self.shown:
            self.aliases.unmap(self.aliases.table.inside(*part))
        for alias in self.aliases.table:
            alias.state = State.DOUBTFUL
        for book in (self.aliases, self.chunks):
            for mapping in book:
                mapping.state = State.DOUBTFUL
            book.settle()
            book.unreserve()
        assert not any(self.driver.held().values())


TestMappingsMachine = MappingsMachine.TestCase


def test_a_growth_of_many_chunks_is_undone_by_one_call():
    driver, memory, chunks, _ = open_mappings()
    driver.faults.fail("enable_access")
    with pytest.raises(DriverError):
        grow(chunks, 1, 1, 1, 1, 1)
    assert driver.calls["unmap"] == 1
    assert driver.calls["release_chunk"] == 5
    assert (len(chunks.table), memory.reserved_bytes) == (0, 0)
    chunks.check()


def test_more_chunks_than_the_device_holds_are_refused_before_one_is_made():
    driver, memory, chunks, _ = open_mappings()
    driver.create_chunk(30 * UNIT)  # a neighbor's
    with pytest.raises(DriverOutOfMemoryError):
        grow(chunks, *[1] * 5)
    with pytest.raises(DriverOutOfMemoryError):
        grow(chunks, 33)
    assert (driver.calls["create_chunk"], memory.reserved_bytes) == (1, 0)
    chunks.check()


def test_addresses_are_found_aligned_and_given_back_whole():
    driver, _, chunks, _ = open_mappings()
    grow(chunks, 1)
    free, start = chunks.find(UNIT, 16 * UNIT)
    assert start % (16 * UNIT) == 0
    chunks.map(free, start, [UNIT])
    for mapping in [*chunks]:
        chunks.unmap([mapping])
        chunks.drop(mapping)
    assert len(chunks.addresses) == 1
    chunks.unreserve()
    assert not any(driver.held().values())


def test_check_finds_what_does_not_agree():
    for damage in (
        lambda chunks: chunks.table.add(Mapping(UNIT, UNIT, 5)),
        lambda chunks: chunks.table.remove(next(iter(chunks)).start),
        lambda chunks: chunks.give(UNIT, UNIT),
    ):
        _, _, chunks, _ = open_mappings()
        grow(chunks, 1, 2)
        damage(chunks)
        with pytest.raises(InvariantError):
            chunks.check()
