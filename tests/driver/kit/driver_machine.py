"""Random programs against a driver and a naive model of it: one dict entry a unit, bytes by value.

Every rule may ask for something that is refused; the naive model says whether it is, by looking
at each unit. Contents are one byte value a unit of each chunk, so aliases and remapping show.
"""

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from smartpool.errors import DriverError

SLOTS = 12
sizes = st.integers(1, 4)
slots = st.integers(-1, SLOTS)
lengths = st.integers(0, SLOTS)


class DriverMachine(RuleBasedStateMachine):
    """Give `open()`; `readable` says whether contents can be compared, `undo_all` runs at the end."""

    readable = True

    def open(self):
        raise NotImplementedError

    chunks = Bundle("chunks")

    @initialize()
    def start(self):
        self.driver = self.open()
        self.unit = self.driver.granularity
        self.before = self.driver.held()
        self.bases = [self.driver.reserve(SLOTS * self.unit) for _ in range(2)]
        self.sizes = {}  # chunk -> units
        self.values = {}  # (chunk, unit) -> byte value, or None while unwritten
        self.units = {}  # address of a unit -> (chunk, unit of chunk, mapping start)
        self.access = set()  # addresses of units
        self.raw = {}  # address -> (size, value)

    def address(self, which, slot):
        return self.bases[which] + slot * self.unit

    def inside(self, which, slot, length):
        return slot >= 0 and slot + length <= SLOTS

    def strays(self, which, slot, length):
        """Whether a range leaves its reservation and reaches the other, which may stand beside it.

        Where reservations stand is the device's choice, so such steps are left out: a program must
        mean the same in every run.
        """
        other = self.bases[1 - which]
        return not self.inside(which, slot, length) and any(
            other <= at < other + SLOTS * self.unit for at in self.window(which, slot, length)
        )

    def window(self, which, slot, length):
        return [self.address(which, at) for at in range(slot, slot + length)]

    def expect(self, allowed, call, *arguments):
        """Make the call; it must be refused exactly when the model says so."""
        try:
            result = call(*arguments)
        except DriverError as error:
            if allowed:
                raise AssertionError(f"{call} {arguments} was refused") from error
            return None
        assert allowed, f"{call} {arguments} was accepted"
        return result

    # --- chunks and mappings ---

    @rule(target=chunks, units=sizes)
    def create(self, units):
        chunk = self.driver.create_chunk(units * self.unit)
        assert chunk not in self.sizes
        self.sizes[chunk] = units
        self.values.update({(chunk, at): 0 for at in range(units)} if self.fresh_is_zero else {})
        return chunk

    fresh_is_zero = False

    @rule(target=chunks, chunk=consumes(chunks))
    def release(self, chunk):
        mapped = any(owner == chunk for owner, _, _ in self.units.values())
        self.expect(not mapped, self.driver.release_chunk, chunk)
        if mapped:
            return chunk
        for at in range(self.sizes.pop(chunk)):
            self.values.pop((chunk, at), None)
        self.expect(False, self.driver.release_chunk, chunk)
        return multiple()

    @rule(chunk=chunks, which=st.integers(0, 1), slot=slots)
    def map(self, chunk, which, slot):
        units = self.sizes[chunk]
        if self.strays(which, slot, units):
            return
        window = self.window(which, slot, units)
        allowed = self.inside(which, slot, units) and not any(at in self.units for at in window)
        self.expect(allowed, self.driver.map_chunk, self.address(which, slot), chunk)
        if allowed:
            self.units.update({at: (chunk, index, window[0]) for index, at in enumerate(window)})

    def whole(self, which, slot, length):
        """Whether a range is of whole mappings, inside one reservation."""
        if length < 1 or not self.inside(which, slot, length):
            return False
        window = set(self.window(which, slot, length))
        starts = {self.units[at][2] for at in window if at in self.units}
        return all(at in window for at, (_, _, start) in self.units.items() if start in starts)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def use(self, data):
        """Map a chunk where there is room, enable it and fill it: what chance alone rarely does."""
        chunk = data.draw(st.sampled_from(list(self.sizes)))
        units, which = self.sizes[chunk], data.draw(st.integers(0, 1))
        room = [
            slot
            for slot in range(SLOTS - units + 1)
            if not any(at in self.units for at in self.window(which, slot, units))
        ]
        if room:
            slot = data.draw(st.sampled_from(room))
            self.map(chunk=chunk, which=which, slot=slot)
            self.enable(which=which, slot=slot, length=units)
            self.fill(which=which, slot=slot, length=units, value=data.draw(st.integers(0, 255)))

    @precondition(lambda self: self.units)
    @rule(data=st.data())
    def unmap_one(self, data):
        starts = {start for _, _, start in self.units.values()}
        places = [
            place for place in itertools.product(range(2), range(SLOTS)) if self.address(*place) in starts
        ]
        which, slot = data.draw(st.sampled_from(places))
        length = sum(begin == self.address(which, slot) for _, _, begin in self.units.values())
        self.unmap(which=which, slot=slot, length=length)

    @rule(which=st.integers(0, 1), slot=slots, length=lengths)
    def enable(self, which, slot, length):
        if self.strays(which, slot, length):
            return
        window = self.window(which, slot, length)
        allowed = self.whole(which, slot, length) and all(at in self.units for at in window)
        self.expect(allowed, self.driver.enable_access, self.address(which, slot), length * self.unit)
        if allowed:
            self.access.update(window)

    @rule(which=st.integers(0, 1), slot=slots, length=lengths)
    def unmap(self, which, slot, length):
        if self.strays(which, slot, length):
            return
        allowed = self.whole(which, slot, length)
        self.driver.synchronize()
        self.expect(allowed, self.driver.unmap, self.address(which, slot), length * self.unit)
        if allowed:
            for at in self.window(which, slot, length):
                self.units.pop(at, None)
                self.access.discard(at)

    @rule(which=st.integers(0, 1), length=st.integers(1, SLOTS + 1))
    def unreserve(self, which, length):
        mapped = any(at in self.units for at in self.window(which, 0, SLOTS))
        allowed = length == SLOTS and not mapped
        self.expect(allowed, self.driver.unreserve, self.bases[which], length * self.unit)
        if allowed:
            self.bases[which] = self.driver.reserve(SLOTS * self.unit)

    # --- contents ---

    @rule(
        which=st.integers(0, 1),
        slot=st.integers(0, SLOTS - 1),
        length=st.integers(1, 4),
        value=st.integers(0, 255),
    )
    def fill(self, which, slot, length, value):
        if self.strays(which, slot, length):
            return
        window = self.window(which, slot, length)
        allowed = all(at in self.access for at in window)
        self.expect(allowed, self.driver.fill, window[0], value, length * self.unit, 0)
        if allowed:
            for at in window:
                self.values[self.units[at][:2]] = value

    @rule(which=st.integers(0, 1), source=st.integers(0, SLOTS - 1), destination=st.integers(0, SLOTS - 1))
    def copy(self, which, source, destination):
        here, there = self.address(which, source), self.address(1 - which, destination)
        allowed = here in self.access and there in self.access
        if allowed and self.units[here][:2] == self.units[there][:2]:
            return  # the same bytes by two names: that they overlap cannot be seen from the addresses
        self.expect(allowed, self.driver.copy, there, here, self.unit, 0)
        if allowed:
            self.values[self.units[there][:2]] = self.values.get(self.units[here][:2])

    # --- raw memory ---

    @precondition(lambda self: len(self.raw) < 8)
    @rule(size=st.integers(1, 100_000), value=st.integers(0, 255))
    def allocate(self, size, value):
        address = self.driver.allocate(size)
        assert address % 512 == 0
        assert all(address + size <= at or at + held <= address for at, (held, _) in self.raw.items())
        self.driver.fill(address, value, size, 0)
        self.raw[address] = (size, value)

    @rule(data=st.data())
    def free(self, data):
        if not self.raw:
            return
        address = data.draw(st.sampled_from(list(self.raw)))
        wrong = data.draw(st.booleans())
        if wrong:
            self.expect(False, self.driver.free, address + 1)
        else:
            self.driver.free(address)
            del self.raw[address]

    # --- what holds after every step ---

    @invariant()
    def books_agree(self):
        if not hasattr(self, "driver"):
            return
        self.driver.check()
        held = self.driver.held()
        assert held["chunks"] - self.before["chunks"] == len(self.sizes)
        assert held["chunk_bytes"] - self.before["chunk_bytes"] == sum(self.sizes.values()) * self.unit
        assert held["mappings"] - self.before["mappings"] == len(
            {start for _, _, start in self.units.values()}
        )
        assert held["raw"] - self.before["raw"] == len(self.raw)

    @invariant()
    def contents_agree(self):
        if not hasattr(self, "driver") or not self.readable:
            return
        for at in self.access:
            value = self.values.get(self.units[at][:2])
            if value is not None:
                edges = self.driver.read(at, 1) + self.driver.read(at + self.unit - 1, 1)
                assert edges == bytes((value, value)), f"{at:#x} shows {edges!r}, expected {value}"
        for address, (size, value) in self.raw.items():
            assert self.driver.read(address + size - 1, 1) == bytes((value,))

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        self.driver.synchronize()
        for base in self.bases:
            self.driver.unmap(base, SLOTS * self.unit)
            self.driver.unreserve(base, SLOTS * self.unit)
        for chunk in self.sizes:
            self.driver.release_chunk(chunk)
        for address in self.raw:
            self.driver.free(address)
        assert self.driver.held() == self.before
        self.driver.close()
