"""Programs: what was done to an allocator, as values that can be run again and written as Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from smartpool.testing.contract import Hook

__all__ = [
    "BadFree",
    "BadSize",
    "Block",
    "Call",
    "Fault",
    "Free",
    "Malloc",
    "Program",
    "Record",
    "Step",
    "Upkeep",
    "Wording",
]

Session = Any
"""A `smartpool.testing.session.Session`: it is made of what stands here, which so cannot import it."""

_REFUSED: Final = """\
def refused(call):
    try:
        call()
    except Exception:
        return True
    return False
"""


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


@dataclass(frozen=True, slots=True)
class Program:
    """Steps that lead to a violation.

    Parameters
    ----------
    steps
        What was done, in order.
    source
        The same as Python that fails where the allocator does. Names that cannot be imported, such as a
        lambda's, are in `names`: ``exec(program.source, dict(program.names))``.
    names
        What the caller gave under a name that `source` uses.
    """

    steps: tuple[Step, ...]
    source: str
    names: Mapping[str, object] = field(repr=False)

    def __len__(self) -> int:
        return len(self.steps)


class Step(Protocol):
    """One thing done to an allocator."""

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Do it again in another session; `blocks` has this program's names, and none of what has gone."""

    def lines(self, words: Wording) -> list[str]:
        """Write it as Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malloc:
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

    def lines(self, words: Wording) -> list[str]:
        """Write the request; one that was refused is expected to be."""
        arguments = [str(self.nbytes)] + ([] if self.alignment is None else [str(self.alignment)])
        stream = words.stream(self.stream)
        if self.alignment is None:
            call = f"{words.malloc}({', '.join(arguments + stream)})"
        else:
            call = words.hook("malloc_aligned", *arguments, *stream)
        if self.refused:
            return [f"assert {words.refused(call)}"]
        lines = [f"{self.name} = {call}"]
        if self.stamped:
            lines.append(f"{words.memory()}.stamp({self.name}, {self.nbytes}, number={self.number})")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """A free of a live block."""

    name: str
    nbytes: int
    stream: int | None = None
    behind: tuple[int, ...] = ()

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Free the block again."""
        block = blocks.get(self.name)
        if block is not None and block.name in session.live:
            session.free(block, stream=self.stream)

    def lines(self, words: Wording) -> list[str]:
        """Write the free."""
        return [*words.orders(self.stream, self.behind), words.release(self.name, self.nbytes, self.stream)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFree:
    """A free of what is no live block: one freed before, or an address beside a block's."""

    name: str
    nbytes: int
    offset: int = 0
    refused: bool = True

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Try it again, if that is still a mistake."""
        block = blocks.get(self.name)
        if block is None:
            return
        if not self.offset and block.name in session.dead:
            session.free_again(block)
        elif self.offset and session.is_foreign(block.address + self.offset):
            session.free_foreign(block, self.offset)

    def lines(self, words: Wording) -> list[str]:
        """Write it as a call that is refused, or may be."""
        target = f"{self.name} + {self.offset}" if self.offset else self.name
        call = words.refused(words.release(target, self.nbytes, None))
        return [f"assert {call}" if self.refused else call]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A further stream that uses a live block, told to the allocator."""

    name: str
    stream: int

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Tell it again, if the block is there."""
        block = blocks.get(self.name)
        if block is not None and block.name in session.live:
            session.record_stream(block, self.stream)

    def lines(self, words: Wording) -> list[str]:
        """Write the call."""
        return [words.hook("record_stream", self.name, *words.stream_itself(self.stream))]


@dataclass(frozen=True, slots=True)
class BadSize:
    """A request whose size is negative or no number."""

    size: object

    def run(self, session: Session, blocks: dict[str, Block]) -> None:  # noqa: ARG002
        """Ask again."""
        session.malloc_bad(self.size)

    def lines(self, words: Wording) -> list[str]:
        """Write it as a call that is refused."""
        return [f"assert {words.refused(f'{words.malloc}({self.size!r})')}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """One of the contract's further operations."""

    name: str
    failed: bool = False

    def run(self, session: Session, blocks: dict[str, Block]) -> None:  # noqa: ARG002
        """Do it again."""
        session.upkeep(self.name)

    def lines(self, words: Wording) -> list[str]:
        """Write the call."""
        call = words.upkeep(self.name)
        return [words.refused(call) if self.failed else call]


@dataclass(frozen=True, slots=True)
class Fault:
    """A driver call that is made to fail."""

    call: str
    nth: int

    def run(self, session: Session, blocks: dict[str, Block]) -> None:  # noqa: ARG002
        """Arm it again."""
        session.script_fault(self.call, self.nth)

    def lines(self, words: Wording) -> list[str]:  # noqa: ARG002 - the driver's name is known
        """Write the arming."""
        return [f"driver.faults.fail({self.call!r}, nth={self.nth})"]


@dataclass(frozen=True, slots=True)
class Call:
    """Something that a subclass of the machine does, with the Python that says what."""

    source: str
    function: Callable[[], object]

    def run(self, session: Session, blocks: dict[str, Block]) -> None:
        """Cannot be done in another session: the function belongs to this one."""
        raise NotImplementedError(self.source)

    def lines(self, words: Wording) -> list[str]:  # noqa: ARG002 - the same for all steps
        """Write it as the subclass did."""
        return [self.source]


class Wording:
    """How a program names what the caller gave: by an import where there is one, else as the option."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._contract = session.contract
        self._subject = session.subject
        self._watched = session.watched
        self.malloc, self.free = session.subject.names
        self.names: dict[str, object] = {}
        self._imports: dict[str, set[str]] = {}
        self._helpers: set[str] = set()

    def expression(self, label: str, value: Any) -> str:
        """Return Python that names `value`, which the caller gave as `label`."""
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if module and name and module not in ("__main__", "builtins") and "<" not in name:
            try:
                found: Any = import_module(module)
                for part in name.split("."):
                    found = getattr(found, part)
            except (ImportError, AttributeError):
                found = None
            if found is value:
                self.imported(module, name.split(".")[0])
                return str(name)
        self.names[label] = value
        return label

    def imported(self, module: str, name: str) -> str:
        """Import a name, and return it."""
        self._imports.setdefault(module, set()).add(name)
        return name

    def hook(self, label: str, *arguments: str) -> str:
        """Return the call of one of the contract's hooks on the pool."""
        return self._call(label, getattr(self._contract, label), arguments)

    def upkeep(self, name: str) -> str:
        """Return the call of one of the further operations."""
        return self._call(name if name.isidentifier() else "upkeep", self._contract.upkeep[name], ())

    def release(self, target: str, nbytes: int, stream: int | None) -> str:
        """Return the call that frees `target`."""
        size = [str(nbytes)] if self._subject.sized_free else []
        stream_of = self.stream(stream) if self._subject.free_takes_stream else []
        return f"{self.free}({', '.join([target, *size, *stream_of])})"

    def stream(self, number: int | None) -> list[str]:
        """Return the argument that names a stream."""
        return [] if number is None else [f"stream={self._streams()}[{number}]"]

    def handle(self, number: int) -> str:
        """Return a stream as the driver knows it."""
        return f"{self._streams('handles' if self._contract.wrap_stream else 'streams')}[{number}]"

    def stream_itself(self, number: int) -> list[str]:
        """Return a stream as the allocator takes it."""
        return [f"{self._streams()}[{number}]"]

    def address_of_block(self, name: str) -> str:
        """Return the address of the block of that name."""
        block = self._session.live.get(name) or self._session.gone[name]
        return self.address(name, block.handle)

    def orders(self, stream: int | None, behind: tuple[int, ...]) -> list[str]:
        """Return the calls that let a stream wait for others."""
        if stream is None:
            return []
        return [f"driver.order({self.handle(stream)}, behind={self.handle(each)})" for each in behind]

    def address(self, name: str, handle: object) -> str:
        """Return the address of a block."""
        if isinstance(handle, int):
            return name
        if self._contract.address is not None:
            return f"{self.expression('address', self._contract.address)}({name})"
        return f"{self.imported('smartpool.testing', 'address_of')}({name})"

    def refused(self, call: str) -> str:
        """Return an expression that says whether a call raises."""
        self._helpers.add("refused")
        return f"refused(lambda: {call})"

    def memory(self) -> str:
        """Return the name of the object that reads and writes blocks."""
        self._helpers.add("memory")
        return "memory"

    def source(self, steps: tuple[Step, ...], proof: Callable[[Wording], list[str]] | None) -> str:
        """Return the whole program; `proof` writes its end."""
        body = [line for step in steps for line in step.lines(self)] + (proof(self) if proof else [])
        make = self._making()  # may import more
        head = [
            f"from {module} import {', '.join(sorted(names))}"
            for module, names in sorted(self._imports.items())
        ]
        given = sorted(self.names)
        if given:
            head = [f"# {', '.join(given)}: what the check was given", *head]
        helpers = _REFUSED.splitlines() if "refused" in self._helpers else []
        parts = ("\n".join(part) for part in (head, helpers, [*make, *body]) if part)
        return "\n\n".join(parts) + "\n"

    # ------------------------------------------------------------------ inside

    def _making(self) -> list[str]:
        factory, driver = self.expression("factory", self._contract.factory), self._contract.driver
        lines: list[str] = []
        if isinstance(driver, str):
            opened = f"{self.imported('smartpool.driver', 'open_driver')}({driver!r})"
        else:
            opened = f"{self.expression('open_driver', driver)}()" if driver is not None else ""
        if opened and self._watched:
            opened = f"{self.imported('smartpool.testing', 'WatchedDriver')}({opened})"
        if opened:
            lines.append(f"driver = {opened}")
        made = f"{factory}({'driver' if driver is not None else ''})"
        lines.append(f"{'malloc, free' if self.malloc == 'malloc' else 'pool'} = {made}")
        if "malloc, free" in lines[-1] and self._uses_pool():
            lines.append("pool = malloc, free")
        wrap = self._contract.wrap_stream
        if {"streams", "handles"} & self._helpers:
            lines.append(f"{'handles' if wrap else 'streams'} = {self._streams_source()}")
        if wrap is not None and "streams" in self._helpers:
            lines.append(f"streams = [{self.expression('wrap_stream', wrap)}(handle) for handle in handles]")
        if "memory" in self._helpers:
            lines.append(f"memory = {self._memory_source()}")
        return lines

    def _uses_pool(self) -> bool:
        contract = self._contract
        hooks = (contract.read, contract.check, contract.accounting, contract.trim, contract.malloc_aligned)
        return any(hooks) or bool(contract.upkeep) or callable(contract.streams)

    def _streams(self, name: str = "streams") -> str:
        self._helpers.add(name)
        return name

    def _streams_source(self) -> str:
        given = self._contract.streams
        if isinstance(given, int):
            return f"[driver.default_stream, *(driver.create_stream() for _ in range({given}))]"
        if callable(given):
            return self._call("make_streams", given, ())
        if given is not None and all(each is None or isinstance(each, int) for each in given):
            return repr(list(given))
        self.names["given_streams"] = given
        return "given_streams"

    def _memory_source(self) -> str:
        contract, memory = self._contract, self.imported("smartpool.testing", "Memory")
        address = f"address={self.expression('address', contract.address)}" if contract.address else ""
        if contract.read is None or contract.write is None:
            arguments = ["driver.read", "driver.write"] if contract.driver is not None else []
        else:
            arguments = [self._bound("read", contract.read), self._bound("write", contract.write)]
        return f"{memory}({', '.join([*arguments, *([address] if address else [])])})"

    def _bound(self, label: str, hook: Hook) -> str:
        if isinstance(hook, str):
            return f"pool.{hook}"
        return f"{self.imported('functools', 'partial')}({self.expression(label, hook)}, pool)"

    def _call(self, label: str, hook: Hook, arguments: tuple[str, ...]) -> str:
        if isinstance(hook, str):
            return f"pool.{hook}({', '.join(arguments)})"
        return f"{self.expression(label, hook)}({', '.join(('pool', *arguments))})"
