"""What is done to an allocator, step by step, as values that can be done again and written as Python.

A step says a thing once: `run` does it in a session, whose methods note and check it, and `lines` writes it
in the words of a `Wording`. Blocks go by names, so a step that is left out leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BadFree", "BadSize", "Block", "Call", "Fault", "Free", "Look", "Malloc", "Record", "Signal", "Step",
    "Upkeep", "Use",
]  # fmt: skip

Session = Any
"""A `smartpool.testing.session.Session`: it is made of what stands here, which so cannot import it."""

Words = Any
"""A `smartpool.testing.wording.Wording`, likewise."""


@dataclass(slots=True, eq=False)
class Block:
    """A block that was handed out: `handle` is what the allocator returned."""

    name: str
    number: int
    handle: Any
    address: int
    nbytes: int
    stream: int | None
    stamped: bool


class Step:
    """One thing done to an allocator."""

    __slots__ = ()

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Do it again in another session; `blocks` has this program's names, and none of what has gone."""
        raise NotImplementedError(self)

    def lines(self, words: Words) -> list[str]:
        """Write it as Python."""
        raise NotImplementedError(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Malloc(Step):
    """A request, and what became of it."""

    name: str
    number: int
    nbytes: int
    stream: int | None = None
    alignment: int | None = None
    refused: bool = False
    stamped: bool = False

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Ask again."""
        block = session.malloc(self.nbytes, stream=self.stream, alignment=self.alignment)
        if block is not None:
            blocks[self.name] = block

    def lines(self, words: Words) -> list[str]:
        """Write the request; one that was refused is expected to be."""
        stream = words.stream(self.stream)
        if self.alignment is None:
            call = f"{words.malloc}({', '.join([str(self.nbytes), *stream])})"
        else:
            call = words.hook("malloc_aligned", str(self.nbytes), str(self.alignment), *stream)
        if self.refused:
            return [f"assert {words.refused(call)}"]
        lines = [f"{self.name} = {call}"]
        if self.stamped:
            lines.append(f"{words.memory()}.stamp({self.name}, {self.nbytes}, number={self.number})")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFree(Step):
    """A free of what is no live block: one freed before, or an address beside a block's."""

    name: str
    nbytes: int
    offset: int = 0
    refused: bool = True

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Try it again, if that is still a mistake."""
        block = blocks.get(self.name)
        if block is not None and not self.offset and block.name in session.dead:
            session.free_again(block)
        elif block is not None and self.offset and session.is_foreign(block.address + self.offset):
            session.free_foreign(block, self.offset)

    def lines(self, words: Words) -> list[str]:
        """Write it as a call that is refused, or may be."""
        target = f"{self.name} + {self.offset}" if self.offset else self.name
        call = words.refused(words.release(target, self.nbytes, None))
        return [f"assert {call}" if self.refused else call]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnBlock(Step):
    """Something done to a live block."""

    name: str
    nbytes: int = 0

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Do it again, if the block is there."""
        block = blocks.get(self.name)
        if block is not None and block.name in session.live:
            self._again(session, block)

    def _again(self, session: Session, block: Block) -> None:
        raise NotImplementedError(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Free(_OnBlock):
    """A free."""

    stream: int | None = None
    behind: tuple[int, ...] = ()

    def _again(self, session: Session, block: Block) -> None:
        session.free(block, stream=self.stream)

    def lines(self, words: Words) -> list[str]:
        """Write the free."""
        return [*words.orders(self.stream, self.behind), words.release(self.name, self.nbytes, self.stream)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(_OnBlock):
    """A further stream that uses a live block, told to the allocator."""

    stream: int

    def _again(self, session: Session, block: Block) -> None:
        session.record_stream(block, self.stream)

    def lines(self, words: Words) -> list[str]:
        """Write the call."""
        return [words.hook("record_stream", self.name, words.allocator_stream(self.stream))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use(_OnBlock):
    """Work on a block: the device fills it."""

    stream: int
    value: int
    behind: tuple[int, ...] = ()
    recorded: bool = False

    def _again(self, session: Session, block: Block) -> None:
        session.use(block, self.stream)

    def lines(self, words: Words) -> list[str]:
        """Write the caller's own order, what the allocator is told, and the work."""
        lines = words.orders(self.stream, self.behind)
        if self.recorded:
            lines.append(words.hook("record_stream", self.name, words.allocator_stream(self.stream)))
        target = words.address_of_block(self.name)
        return [*lines, f"driver.fill({target}, {self.value}, {self.nbytes}, {words.handle(self.stream)})"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look(_OnBlock):
    """Work that reads a block: both ends are copied to where nobody writes."""

    stream: int

    def _again(self, session: Session, block: Block) -> None:
        session.look(block, self.stream)

    def lines(self, words: Words) -> list[str]:
        """Write the look."""
        target = words.address_of_block(self.name)
        return [f"seen_{self.name} = driver.look({target}, {self.nbytes}, {words.handle(self.stream)})"]


@dataclass(frozen=True, slots=True)
class Signal(Step):
    """A stream is made busy, a busy one goes on, or the host waits for one: a method of `StreamSession`."""

    what: str
    stream: int

    def run(self, session: Session, blocks: dict[str, Block]) -> None:  # noqa: ARG002 - of all steps
        """Do it again."""
        getattr(session, self.what)(self.stream)

    def lines(self, words: Words) -> list[str]:
        """Write the call of the driver."""
        call = "synchronize" if self.what == "wait" else self.what
        return [f"driver.{call}({words.handle(self.stream)})"]


@dataclass(frozen=True, slots=True)
class BadSize(Step):
    """A request whose size is negative or no number."""

    size: object

    def run(self, session: Session, blocks: dict[str, Block]) -> None:  # noqa: ARG002
        """Ask again."""
        session.malloc_bad(self.size)

    def lines(self, words: Words) -> list[str]:
        """Write it as a call that is refused."""
        return [f"assert {words.refused(f'{words.malloc}({self.size!r})')}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep(Step):
    """One of the contract's further operations."""

    name: str
    failed: bool = False

    def run(self, session: Session, blocks: dict[str, Block]) -> None:  # noqa: ARG002
        """Do it again."""
        session.upkeep(self.name)

    def lines(self, words: Words) -> list[str]:
        """Write the call."""
        call = words.upkeep(self.name)
        return [words.refused(call) if self.failed else call]


@dataclass(frozen=True, slots=True)
class Fault(Step):
    """A driver call that is made to fail."""

    call: str
    nth: int

    def run(self, session: Session, blocks: dict[str, Block]) -> None:  # noqa: ARG002
        """Arm it again."""
        session.script_fault(self.call, self.nth)

    def lines(self, words: Words) -> list[str]:  # noqa: ARG002 - the driver's name is known
        """Write the arming."""
        return [f"driver.faults.fail({self.call!r}, nth={self.nth})"]


@dataclass(frozen=True, slots=True)
class Call(Step):
    """What a subclass of the machine does, with the Python for it; not to be done in another session."""

    source: str
    function: Callable[[], object]

    def lines(self, words: Words) -> list[str]:  # noqa: ARG002
        """Write it as the subclass did."""
        return [self.source]
