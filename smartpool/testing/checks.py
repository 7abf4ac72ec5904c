"""What must hold after every step: an allocator beside the naive model of it.

The model is a table of live blocks with their addresses and sizes, and the peaks of `Accounts`. Each check
names the invariant that it is about; what breaks it becomes an error with the program so far.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from string import ascii_lowercase
from typing import Any, Final

from smartpool.driver import open_driver
from smartpool.errors import DriverError
from smartpool.testing.accounting import Accounts
from smartpool.testing.contract import Contract, Hook
from smartpool.testing.invariants import Invariant, ViolationError, violation
from smartpool.testing.memory import Memory, address_of
from smartpool.testing.steps import Block, Malloc, Step
from smartpool.testing.subject import Subject
from smartpool.testing.wording import Program, Wording

__all__ = ["Checks"]


class Checks:
    """A fresh allocator, the model beside it, and every check; `Session` is what does something to it."""

    watched = False

    def __init__(self, contract: Contract, *, stamp: bool = True) -> None:
        self.contract = contract
        self.driver: Any = self.open_driver()
        self.subject = Subject.make(contract, self.driver)
        self.live: dict[str, Block] = {}
        self.dead: dict[str, Block] = {}
        self.gone: dict[str, Block] = {}
        self.steps: list[Step] = []
        self.checked: Counter[Invariant] = Counter()
        self.broken: ViolationError | None = None
        self._names = _names()
        self._numbers = itertools.count(1)
        self._accounts = Accounts(contract)
        self._errors = contract.errors if isinstance(contract.errors, tuple) else (contract.errors,)
        self._faulty = False
        self._largest: Malloc | None = None
        self.stamps = stamp
        self._memory = self._make_memory()
        self._baseline = self._figures().get("reserved_bytes")

    def open_driver(self) -> Any:
        """Return a fresh driver, or None where the contract has none."""
        driver = self.contract.driver
        if driver is None:
            return None
        return open_driver(driver) if isinstance(driver, str) else driver()

    def _agrees(self, blamed: Invariant | None = None, before: Mapping[str, Any] | None = None) -> None:
        """Check what must hold after every step; `blamed` names what the step itself put to the test."""
        self._figures_agree(blamed, before)
        if self.contract.check is not None:
            self.checked[Invariant.OWN_CHECK] += 1
            try:
                self._hook(self.contract.check)()
            except Exception as error:
                raise self._violation(
                    Invariant.OWN_CHECK, f"it says {error!r}", self._hook_proof("check")
                ) from error
        for block in self._looked_at(everyone=blamed is not None):
            self._look_at(block, edges=True, blamed=blamed)

    def _figures_agree(self, blamed: Invariant | None, before: Mapping[str, Any] | None) -> None:
        if self.contract.accounting is None:
            return
        figures = self._figures()
        if before is not None and blamed is not None:
            changed = [
                name for name in before if name.startswith("live") and figures.get(name) != before.get(name)
            ]
            if changed:
                name = changed[0]
                raise self._violation(
                    blamed,
                    f"{name} was {before[name]} before and is {figures.get(name)} after",
                    self._figure_proof(f"figures[{name!r}] == {before[name]}"),
                )
        self.checked[Invariant.ACCOUNTING] += 1
        wrong = self._accounts.mismatch(figures, self.live.values())
        if wrong is not None:
            detail, proof = wrong
            raise self._violation(Invariant.ACCOUNTING, detail, self._figure_proof(proof))

    def _looked_at(self, *, everyone: bool) -> Sequence[Block]:
        """Return whose contents are compared after this step: all of a few blocks, some of many in turn."""
        blocks = list(self.live.values())
        if everyone or len(blocks) <= _LOOKED_AT:
            return blocks
        first = len(self.steps) * _LOOKED_AT % len(blocks)
        return (blocks + blocks)[first : first + _LOOKED_AT]

    def _look_at(self, block: Block, *, edges: bool, blamed: Invariant | None = None) -> None:
        if not block.stamped:
            return
        self.checked[Invariant.CONTENTS] += 1
        damage = self._memory.find_damage(block.handle, block.nbytes, block.number, edges=edges)
        if damage is not None:
            at, found, wanted = damage
            error = self._violation(
                blamed or Invariant.CONTENTS,
                f"from byte {at} on {block.name} holds {found.hex(' ')}, and {wanted.hex(' ')} was written",
                self._intact_proof(block),
            )
            error.damage = True
            raise error

    def _well_placed(self, block: Block, step: Malloc) -> None:
        contract = self.contract
        needs_address = block.nbytes > 0 or contract.zero_size == "distinct"
        self.checked[Invariant.VALID_ADDRESS] += 1
        if needs_address and block.address <= 0:
            raise self._violation(
                Invariant.VALID_ADDRESS,
                f"{block.nbytes} bytes were served at {block.address}",
                lambda words: [f"assert {words.address(block.name, block.handle)} > 0"],
            )
        alignment = max(contract.alignment, step.alignment or 1)
        if needs_address and alignment > 1:
            self.checked[Invariant.ALIGNMENT] += 1
            if block.address % alignment:
                raise self._violation(
                    Invariant.ALIGNMENT,
                    f"{block.name} is at {block.address:#x}, expected a multiple of {alignment}",
                    lambda words: [f"assert {words.address(block.name, block.handle)} % {alignment} == 0"],
                )
        self._overlaps_none(block)
        if contract.capacity is not None:
            self.checked[Invariant.CAPACITY] += 1
            live = sum(each.nbytes for each in self.live.values()) + block.nbytes
            if live > contract.capacity:
                raise self._violation(
                    Invariant.CAPACITY,
                    f"{live} bytes are live in a capacity of {contract.capacity}",
                    lambda _: ['raise AssertionError("the last request was to be refused")'],
                )

    def _overlaps_none(self, block: Block) -> None:
        self.checked[Invariant.NO_OVERLAP] += 1
        least = 1 if self.contract.zero_size == "distinct" else 0
        size = max(block.nbytes, least)
        for other in self.live.values():
            taken = max(other.nbytes, least)
            if (
                size
                and taken
                and block.address < other.address + taken
                and other.address < block.address + size
            ):
                raise self._violation(
                    Invariant.NO_OVERLAP if block.nbytes and other.nbytes else Invariant.ZERO_SIZE,
                    f"{block.name} [{block.address:#x}, +{size}) and {other.name} "
                    f"[{other.address:#x}, +{taken}) share bytes",
                    partial(_apart, block, size, other, taken),
                )

    def _write(self, block: Block) -> None:
        self.checked[Invariant.USABLE] += 1
        try:
            self._memory.stamp(block.handle, block.nbytes, block.number)
            good = self._memory.intact(block.handle, block.nbytes, block.number)
        except Exception as error:
            raise self._violation(
                Invariant.USABLE, f"writing the {block.nbytes} bytes of {block.name} raised {error!r}"
            ) from error
        if not good:
            raise self._violation(
                Invariant.USABLE,
                f"what was written to {block.name} is not what is read",
                self._intact_proof(block),
            )
        block.stamped = True

    def _figures(self) -> Mapping[str, Any]:
        accounting = self.contract.accounting
        return {} if accounting is None else self._hook(accounting)()

    def _hook(self, hook: Hook) -> Callable[..., Any]:
        return self.contract.bound(hook, self.subject.allocator)

    def _allowed(self) -> tuple[type[BaseException], ...]:
        return (*self._errors, DriverError) if self._faulty else self._errors

    def _address(self, handle: Any, nbytes: int) -> int:
        if handle is None and not nbytes and self.contract.zero_size == "any":
            return 0
        return (self.contract.address or address_of)(handle)

    def _make_memory(self) -> Memory:
        contract = self.contract
        if contract.read is not None and contract.write is not None:
            return Memory(self._hook(contract.read), self._hook(contract.write), address=contract.address)
        if self.driver is not None and self.driver.dl_device[0] != _NOTHING_TO_READ:
            return Memory(self.driver.read, self.driver.write, address=contract.address)
        return Memory(address=contract.address)

    def _violation(self, invariant: Invariant, detail: str, proof: _Lines | None = None) -> ViolationError:
        """Return the error; `proof` writes what fails, where the last step does not fail by itself."""
        words = Wording(self)
        source = words.source(tuple(self.steps), proof)
        self.broken = violation(invariant, detail, Program(tuple(self.steps), source, words.names))
        return self.broken

    def _intact_proof(self, block: Block) -> _Lines:
        arguments = f"{block.name}, {block.nbytes}, number={block.number}"
        return lambda words: [f"assert {words.memory()}.intact({arguments})"]

    def _figure_proof(self, expression: str) -> _Lines:
        return lambda words: [f"figures = {words.hook('accounting')}", f"assert {expression}"]

    def _hook_proof(self, label: str) -> _Lines:
        return lambda words: [words.hook(label)]


_Lines = Callable[[Wording], list[str]]
_NOTHING_TO_READ: Final = 12  # kDLExtDev: addresses without memory
_LOOKED_AT: Final = 8


def _names() -> Iterator[str]:
    """Name blocks a, b, ..., z, a1, b1, ..."""
    for turn in itertools.count():
        for letter in ascii_lowercase:
            yield letter + (str(turn) if turn else "")


def _apart(block: Block, size: int, other: Block, taken: int, words: Wording) -> list[str]:
    here, there = words.address(block.name, block.handle), words.address(other.name, other.handle)
    return [f"assert {here} + {size} <= {there} or {there} + {taken} <= {here}"]
