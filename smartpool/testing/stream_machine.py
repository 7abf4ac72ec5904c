"""`StreamMachine` and `check_stream_order`: memory that wanders between streams, and who waits for whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from smartpool.errors import ConfigurationError
from smartpool.testing.checking import Report, report_of
from smartpool.testing.contract import Contract
from smartpool.testing.hunt import Hunt
from smartpool.testing.machine import AllocatorMachine
from smartpool.testing.session import Session
from smartpool.testing.steps import Block
from smartpool.testing.stream_session import BY, StreamSession

__all__ = ["StreamMachine", "check_stream_order"]


class StreamMachine(AllocatorMachine):
    """The rules of `AllocatorMachine` with work on streams that are busy at times.

    Attributes
    ----------
    by
        ``"events"`` or ``"bytes"``; see `StreamSession`.
    """

    by: ClassVar[str] = "events"
    session: StreamSession

    def make_session(self) -> Session:
        """Return a fresh session on streams."""
        return StreamSession(self.contract, by=self.by)

    def take(self, nbytes: int, stream: int | None = None) -> Block | None:
        """Ask for a block and fill it where it was asked for."""
        number = self.stream_of(stream)
        block = self.session.malloc(nbytes, stream=number)
        if block is not None:
            self.session.use(block, number or 0)
        return block

    def give(self, block: Block, stream: int | None = None) -> None:
        """Use a block once more, and free it at once: the device may still be at it."""
        for user in self.session.users(block) if self.by == "bytes" else ():
            self.session.look(block, user)
        self.session.free(block, stream=self.stream_of(stream))

    @rule(data=st.data(), first=st.integers(0, 7), second=st.integers(0, 7), which=st.integers(0, 50))
    def hand_over(self, data: Any, first: int, second: int, which: int) -> None:
        """Free a block that a busy stream is at, and ask for as much on another: a race, if any."""
        block = self.pick(which) if self.session.live else self.take(data.draw(self._sizes), first)
        if block is None:
            return
        self.session.use(block, self.stream_of(first) or 0)
        self.session.busy(self.stream_of(first) or 0)
        self.give(block)
        self.take(block.nbytes, second)

    @precondition(lambda self: self.session.live)
    @rule(which=st.integers(0, 50), stream=st.integers(0, 7))
    def use(self, which: int, stream: int) -> None:
        """Fill a block again, perhaps on another stream."""
        self.session.use(self.pick(which), self.stream_of(stream) or 0)

    @rule(stream=st.integers(0, 7))
    def busy(self, stream: int) -> None:
        """Let what is queued from now on stay pending."""
        self.session.busy(self.stream_of(stream) or 0)

    @rule(stream=st.integers(0, 7))
    def go_on(self, stream: int) -> None:
        """Let pending work be done."""
        self.session.go_on(self.stream_of(stream) or 0)

    @rule(stream=st.integers(0, 7))
    def wait(self, stream: int) -> None:
        """Let the host wait for a stream."""
        self.session.wait(self.stream_of(stream) or 0)


def check_stream_order(
    factory: Callable[..., Any],
    *,
    driver: str | Callable[[], Any],
    by: str = "events",
    streams: int = 2,
    examples: int = 250,
    steps: int = 40,
    seconds: float = 20.0,
    seed: int | None = 0,
    machine: type[StreamMachine] = StreamMachine,
    **options: Any,
) -> Report:
    """Attack an allocator that knows streams: memory may be used on one only behind the work of others.

    Parameters
    ----------
    factory
        Makes a fresh allocator on the driver that it is given.
    driver
        A device name, or a function that opens a driver. ``"model:64MiB"`` needs no memory.
    by
        ``"events"``: the allocator orders streams by the events of the driver that it is given; each
        request is decided by vector clocks, whatever the timing. ``"bytes"``: it has a way of its own
        (its own CUDA calls), and a violation is work that sees foreign bytes; the driver then fills and
        copies, and must be one with real memory.
    streams
        How many streams beside the default one.
    examples, steps, seconds, seed, machine, **options
        As for `check_allocator`.

    Raises
    ------
    ViolationError
        When an invariant is broken; `Invariant.STREAM_ORDER` is the one that this is about.

    Examples
    --------
    >>> from smartpool import AdvancedMemoryPoolManager
    >>> options = {"driver": "model:64MiB", "close": "close", "examples": 20}
    >>> report = check_stream_order(AdvancedMemoryPoolManager, **options)
    >>> report.checked["stream order"] > 20
    True
    """
    if by not in BY:
        raise ConfigurationError("by", f"expected one of {', '.join(BY)}, got {by!r}")
    contract = Contract(factory=factory, driver=driver, streams=streams, **options)
    hunt = Hunt(contract, examples=examples, steps=steps, seconds=seconds, seed=seed)
    hunt.make_session = lambda: StreamSession(contract, by=by)
    hunt.run_machine(machine, examples, shrink=machine is not StreamMachine, contract=contract, by=by)
    hunt.raise_if_found()
    return report_of(hunt, factory)
