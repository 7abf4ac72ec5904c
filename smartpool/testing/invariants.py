"""What an allocator must never break, by name, and the error that says which was broken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from smartpool.errors import SmartPoolError

if TYPE_CHECKING:
    from smartpool.testing.program import Program

__all__ = ["Found", "Invariant", "ViolationError"]


class Invariant(StrEnum):
    """The invariants, by name; `meaning` says each in a sentence.

    Examples
    --------
    >>> Invariant.NO_OVERLAP.value, Invariant.NO_OVERLAP.meaning
    ('no overlap', 'no two live blocks share a byte')
    """

    NO_OVERLAP = "no overlap"
    ALIGNMENT = "alignment"
    VALID_ADDRESS = "valid address"
    USABLE = "whole block usable"
    CONTENTS = "contents intact"
    CAPACITY = "capacity"
    ACCOUNTING = "accounting"
    NO_LEAK = "no leak"
    FAILURE = "failure changes nothing"
    DOUBLE_FREE = "double free refused"
    FOREIGN_FREE = "foreign free refused"
    BAD_SIZE = "bad size refused"
    ZERO_SIZE = "zero bytes"
    SERVED = "served when it must be"
    ERRORS = "declared errors only"
    OWN_CHECK = "own check"
    STREAM_ORDER = "stream order"

    @property
    def meaning(self) -> str:
        """The invariant in one sentence."""
        return _MEANINGS[self]


_MEANINGS = {
    Invariant.NO_OVERLAP: "no two live blocks share a byte",
    Invariant.ALIGNMENT: "every address is a multiple of the alignment promised or asked for",
    Invariant.VALID_ADDRESS: "a block of at least one byte has an address, and not null",
    Invariant.USABLE: "every byte that was asked for can be written and read back",
    Invariant.CONTENTS: "the bytes of a live block change only when its owner writes them",
    Invariant.CAPACITY: "never more is handed out than there is",
    Invariant.ACCOUNTING: "the allocator's own figures agree with the naive model and with each other",
    Invariant.NO_LEAK: "once everything is freed, everything can be had again and given back",
    Invariant.FAILURE: "a request that is refused leaves blocks, contents and figures as they were",
    Invariant.DOUBLE_FREE: "freeing a block a second time is refused and changes nothing",
    Invariant.FOREIGN_FREE: "freeing what is no block is refused and changes nothing",
    Invariant.BAD_SIZE: "a size that is negative or no number is refused and changes nothing",
    Invariant.ZERO_SIZE: "a request of no bytes gets what the contract says",
    Invariant.SERVED: "a request that the contract says must be served is served",
    Invariant.ERRORS: "a request fails with a declared error only, and a free of a live block never",
    Invariant.OWN_CHECK: "the allocator's own check finds nothing",
    Invariant.STREAM_ORDER: "memory is used on a stream only behind all work that may still touch it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How a search came to a violation.

    Parameters
    ----------
    examples, budget
        In which program it was found, of how many at most.
    seconds
        After how long, before the program was made short.
    seed
        Of the search; None when it was random.
    again
        Whether the program did the same when it was run once more.
    """

    examples: int
    budget: int
    seconds: float
    seed: int | None
    again: bool = True

    def __str__(self) -> str:
        told = (
            f"found in program {self.examples} of {self.budget} after {self.seconds:.2f} s, seed {self.seed}"
        )
        if self.again:
            return told
        return f"{told}; not found when run once more: the allocator does not do the same twice"


class ViolationError(SmartPoolError, AssertionError):
    """An allocator under test broke an invariant: a bug in it, or a contract that promises too much.

    Attributes
    ----------
    invariant
        Which one.
    detail
        What was seen.
    program
        The steps that lead there; `Program.source` is runnable Python. The shortest that was found, when
        raised by `check_allocator`.
    found
        How the search came to it, or None when there was none.
    damage
        Whether it was seen by the contents of a block.
    """

    damage = False

    def __init__(
        self, invariant: Invariant, detail: str, program: Program, *, found: Found | None = None
    ) -> None:
        self.invariant = invariant
        self.detail = detail
        self.program = program
        self.found = found
        lines = "".join(f"    {line}\n" for line in program.source.splitlines())
        super().__init__(f"{invariant}: {detail}\n\n{lines}" + (f"\n{found}" if found else ""))


@cache
def _class_of(invariant: Invariant) -> type[ViolationError]:
    """Return a class of the invariant's own: Hypothesis tells failures apart by class and place."""
    name = "".join(word.capitalize() for word in invariant.value.split()) + "Error"
    return type(name, (ViolationError,), {"__doc__": invariant.meaning, "__module__": __name__})


def violation(
    invariant: Invariant, detail: str, program: Program, *, found: Found | None = None
) -> ViolationError:
    """Return the error for a broken invariant, of the class that is the invariant's own."""
    return _class_of(invariant)(invariant, detail, program, found=found)
