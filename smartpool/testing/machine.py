"""`AllocatorMachine`: any program of requests, frees and misuse, as a Hypothesis state machine."""

from __future__ import annotations

import sys
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from smartpool.testing.contract import Contract
from smartpool.testing.session import Session
from smartpool.testing.steps import Block
from smartpool.testing.strategies import sizes

__all__ = ["AllocatorMachine"]

_ENOUGH: Final = 2
_BAD_SIZES: Final[tuple[object, ...]] = (-1, -(1 << 63), None, "512", [])
_FAULTS = (
    "allocate",
    "create_chunk",
    "map_chunk",
    "enable_access",
    "unmap",
    "release_chunk",
    "reserve",
    "record_event",
)


class AllocatorMachine(RuleBasedStateMachine):
    """Rules that an allocator must survive, whatever their order. Derive from it and give `contract`.

    Its ``TestCase`` is a test for pytest and unittest. Further rules may be added: they find the session in
    `session`, whose methods check everything, and write themselves into the program by `Session.call`.

    Attributes
    ----------
    contract
        How to make the allocator, and what it promises.

    Examples
    --------
    >>> from hypothesis import settings
    >>> from hypothesis.stateful import run_state_machine_as_test
    >>> from smartpool import AdvancedMemoryPoolManager
    >>> class PoolMachine(AllocatorMachine):
    ...     contract = Contract(factory=AdvancedMemoryPoolManager, driver="model:4MiB", close="close")
    >>> few = settings(max_examples=10, database=None, deadline=None)
    >>> run_state_machine_as_test(PoolMachine, settings=few)
    """

    contract: ClassVar[Contract]

    def __init__(self) -> None:
        super().__init__()
        self.session = self.make_session()
        self._sizes = sizes(self.contract)
        self._bad_sizes = self._fragmented = 0

    def make_session(self) -> Session:
        """Return a fresh session; a subclass may vary the contract here."""
        return Session(self.contract)

    def pick(self, which: int) -> Block:
        """Return a live block: 0 the latest, 1 the one before it, and so on around."""
        blocks = list(self.session.live.values())
        return blocks[-1 - which % len(blocks)]

    def take(self, nbytes: int, stream: int | None = None) -> Block | None:
        """Ask for a block; None when it is refused."""
        return self.session.malloc(nbytes, stream=self.stream_of(stream))

    def give(self, block: Block, stream: int | None = None) -> None:
        """Free a live block."""
        self.session.free(block, stream=self.stream_of(stream))

    def stream_of(self, number: int | None) -> int | None:
        """Return a number that is one of the session's streams, or None."""
        streams = len(self.session.subject.streams)
        return None if number is None or not streams else number % streams

    # ------------------------------------------------------------------ requests

    @rule(data=st.data(), stream=st.none() | st.integers(0, 7))
    def malloc(self, data: Any, stream: int | None) -> None:
        """Ask for any size that the contract allows."""
        self.take(data.draw(self._sizes), stream)

    @rule(data=st.data(), count=st.integers(2, 12), step=st.integers(-8, 8))
    def malloc_many(self, data: Any, count: int, step: int) -> None:
        """Ask for many blocks of nearly one size."""
        nbytes = data.draw(self._sizes) // count
        for turn in range(count):
            self.take(max(1, nbytes + turn * step))

    @precondition(lambda self: self._fragmented < _ENOUGH)
    @rule(count=st.integers(4, 12), data=st.data())
    def fragment(self, count: int, data: Any) -> None:
        """Fill the memory, free every second block, and ask for more than any one of the holes."""
        self._fragmented += 1
        nbytes = max(1, self.contract.largest // count)
        blocks = [self.take(nbytes) for _ in range(count)]
        for block in blocks[::2]:
            if block is not None:
                self.give(block)
        self.take(nbytes * data.draw(st.integers(2, count // 2)))

    @precondition(lambda self: self.session.dead)
    @rule(which=st.integers(0, 50), stream=st.none() | st.integers(0, 7))
    def malloc_again(self, which: int, stream: int | None) -> None:
        """Ask for a size that was freed before: what caches are for."""
        dead = list(self.session.dead.values())
        self.take(dead[-1 - which % len(dead)].nbytes, stream)

    @precondition(lambda self: self.contract.malloc_aligned is not None)
    @rule(data=st.data(), shift=st.integers(0, 23), stream=st.none() | st.integers(0, 7))
    def malloc_aligned(self, data: Any, shift: int, stream: int | None) -> None:
        """Ask for an alignment of its own."""
        nbytes = data.draw(self._sizes)
        self.session.malloc(nbytes, alignment=1 << shift, stream=self.stream_of(stream))

    @precondition(lambda self: self.contract.bad_sizes == "refused" and self._bad_sizes < _ENOUGH)
    @rule(size=st.sampled_from(_BAD_SIZES))
    def malloc_bad_size(self, size: object) -> None:
        """Ask for what is no size: once or twice, so that most steps do something."""
        self._bad_sizes += 1
        self.session.malloc_bad(size)

    # ------------------------------------------------------------------ frees

    @precondition(lambda self: self.session.live)
    @rule(which=st.integers(0, 50), stream=st.none() | st.integers(0, 7))
    def free(self, which: int, stream: int | None) -> None:
        """Free any live block."""
        self.give(self.pick(which), stream)

    @precondition(lambda self: len(self.session.live) > 1)
    @rule(every=st.integers(1, 3))
    def free_many(self, every: int) -> None:
        """Free every, every second or every third block: holes, or nothing left."""
        for block in list(self.session.live.values())[::every]:
            self.give(block)

    @precondition(lambda self: self.contract.bad_frees != "undefined" and self.session.dead)
    @rule(which=st.integers(0, 50))
    def free_again(self, which: int) -> None:
        """Free what was freed."""
        dead = list(self.session.dead.values())
        self.session.free_again(dead[-1 - which % len(dead)])

    @precondition(lambda self: self.contract.bad_frees != "undefined" and self.session.live)
    @rule(which=st.integers(0, 50), offset=st.sampled_from((1, -1, 8, 256, 512, 4096)))
    def free_foreign(self, which: int, offset: int) -> None:
        """Free an address in the middle of a block, or beside it."""
        block = self.pick(which)
        if isinstance(block.handle, int) and self.session.is_foreign(block.address + offset):
            self.session.free_foreign(block, offset)

    # ------------------------------------------------------------------ everything else

    @precondition(lambda self: self.contract.record_stream is not None and self.session.live)
    @rule(which=st.integers(0, 50), stream=st.integers(0, 7))
    def record_stream(self, which: int, stream: int) -> None:
        """Say that a further stream uses a block."""
        number = self.stream_of(stream)
        if number is not None:
            self.session.record_stream(self.pick(which), number)

    @precondition(lambda self: self.contract.upkeep)
    @rule(which=st.integers(0, 15))
    def upkeep(self, which: int) -> None:
        """Do one of the contract's further operations."""
        names = list(self.contract.upkeep)
        self.session.upkeep(names[which % len(names)])

    @precondition(lambda self: self.contract.faults)
    @rule(call=st.sampled_from(_FAULTS), nth=st.integers(1, 4))
    def script_fault(self, call: str, nth: int) -> None:
        """Let a driver call fail, now or a little later."""
        self.session.script_fault(call, nth)

    def teardown(self) -> None:
        """Free everything and look whether it is all there again."""
        if sys.exc_info()[0] is None:
            self.session.finish()
        else:
            self.session.abandon()
