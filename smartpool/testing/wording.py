"""A program in words: the steps that lead to a violation, as Python that fails where the allocator does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from smartpool.testing.contract import Hook
from smartpool.testing.steps import Step

__all__ = ["Program", "Wording"]

_REFUSED: Final = """\
def refused(call):
    try:
        call()
    except Exception:
        return True
    return False
"""


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


class Wording:
    """How a program names what the caller gave: by an import where there is one, else as the option."""

    def __init__(self, session: Any) -> None:
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

    def allocator_stream(self, number: int) -> str:
        """Return a stream as the allocator takes it."""
        return f"{self._streams()}[{number}]"

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
