"""What an allocator must never break, by name, and the error that says which was broken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from smartpool.errors import SmartPoolError
from smartpool.testing.wording import Program

__all__ = ["Found", "Invariant", "ViolationError"]


class Invariant(StrEnum):
    """The invariants, by name; `meaning` says each in a sentence, `needs` what its check would need.

    Examples
    --------
    >>> Invariant.NO_OVERLAP.value, Invariant.NO_OVERLAP.meaning
    ('no overlap', 'no two live blocks share a byte')
    """

    meaning: str
    needs: str

    def __new__(cls, name: str, meaning: str, needs: str = "it never came to that") -> Invariant:  # noqa: PYI034
        """Make the member of a name, with what it says and what its check needs of a contract."""
        member = str.__new__(cls, name)
        member._value_, member.meaning, member.needs = name, meaning, needs
        return member

    NO_OVERLAP = "no overlap", "no two live blocks share a byte"
    ALIGNMENT = (
        "alignment",
        "every address is a multiple of the alignment promised or asked for",
        "give alignment=",
    )
    VALID_ADDRESS = "valid address", "a block of at least one byte has an address, and not null"
    USABLE = (
        "whole block usable",
        "every byte that was asked for can be written and read back",
        "give read= and write=, or a driver, or return buffers",
    )
    CONTENTS = (
        "contents intact",
        "the bytes of a live block change only when its owner writes them",
        "give read= and write=, or a driver, or return buffers",
    )
    CAPACITY = "capacity", "never more is handed out than there is", "give capacity="
    ACCOUNTING = (
        "accounting",
        "the allocator's own figures agree with the naive model and with each other",
        "give accounting=",
    )
    NO_LEAK = "no leak", "once everything is freed, everything can be had again and given back"
    FAILURE = (
        "failure changes nothing",
        "a request that is refused leaves blocks, contents and figures as they were",
        "no request was refused: give a small capacity=",
    )
    DOUBLE_FREE = (
        "double free refused",
        "freeing a block a second time is refused and changes nothing",
        "bad_frees is 'undefined'",
    )
    FOREIGN_FREE = (
        "foreign free refused",
        "freeing what is no block is refused and changes nothing",
        "bad_frees is 'undefined', or blocks are no integers",
    )
    BAD_SIZE = (
        "bad size refused",
        "a size that is negative or no number is refused and changes nothing",
        "bad_sizes is 'undefined'",
    )
    ZERO_SIZE = "zero bytes", "a request of no bytes gets what the contract says", "zero_size is 'undefined'"
    SERVED = (
        "served when it must be",
        "a request that the contract says must be served is served",
        "give must_serve=",
    )
    ERRORS = (
        "declared errors only",
        "a request fails with a declared error only, and a free of a live block never",
    )
    OWN_CHECK = "own check", "the allocator's own check finds nothing", "give check="
    STREAM_ORDER = (
        "stream order",
        "memory is used on a stream only behind all work that may still touch it",
        "use check_stream_order",
    )


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
