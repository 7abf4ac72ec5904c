"""From a program that breaks an invariant to a short one that breaks the same.

Problem: the program that was found has dozens of steps, of which two or three matter.

Method: delta debugging (A. Zeller and R. Hildebrandt, "Simplifying and isolating failure-inducing input",
IEEE Transactions on Software Engineering 28, 2002): leave out halves, quarters, ... single steps while the
same invariant breaks; put one request in place of several; then bisect each size towards 1. Steps name
blocks, not draws, so leaving one out leaves the others as they are: this takes tens of runs where shrinking
the draws of a state machine takes hundreds, and runs are dear on a GPU. Hypothesis's own shrinking is kept
for machines with rules of their own, whose steps are closures.

Bound: O(n log n) runs to the first round's end for n steps in practice, O(n^2) at worst, and `seconds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from smartpool.testing.invariants import ViolationError
from smartpool.testing.session import Session
from smartpool.testing.steps import Block, Malloc, Step
from smartpool.units import align_up

__all__ = ["reduced", "run_program"]


def run_program(session: Session, steps: Sequence[Step]) -> ViolationError | None:
    """Run steps in a fresh session and finish it; return the violation that they lead to, or None.

    Blocks go by the names in the steps; steps whose block was refused or is gone are left out.

    Examples
    --------
    >>> from smartpool.testing import Contract
    >>> steps = [Malloc(name=name, number=0, nbytes=17) for name in "ab"]
    >>> one_address = Contract(factory=lambda: (lambda nbytes: 4096, lambda address: None))
    >>> run_program(Session(one_address), steps).invariant.value
    'no overlap'
    >>> arrays = Contract(factory=lambda: (bytearray, lambda array: None))
    >>> run_program(Session(arrays), steps)
    """
    blocks: dict[str, Block] = {}
    try:
        for step in steps:
            step.run(session, blocks)
        session.finish()
    except ViolationError as error:
        session.abandon()
        return error
    return None


def reduced(
    make_session: Callable[[], Session], error: ViolationError, *, seconds: float
) -> ViolationError | None:
    """Return a violation of the same invariant by a short program; None when it does not happen again."""
    search = _Search(make_session, error, time.monotonic() + seconds)
    if not search.adopts(list(error.program.steps)):
        return None
    before = None
    while before != (before := _size(search.best)) and not search.over:
        _leave_out(search)
        _merge(search)
        _make_small(search)
    search.stamp = False  # in the end, so that what matters is not lost with it
    search.adopts(list(search.steps))
    return search.best


class _Search:
    """The best program so far, and the only way to a better one."""

    def __init__(self, make_session: Callable[[], Session], wanted: ViolationError, deadline: float) -> None:
        self.unit = 1  # what a block most likely takes
        self.best: ViolationError | None = None
        self.stamp = True
        self._make_session, self._wanted, self._deadline = make_session, wanted, deadline

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.best.program.steps if self.best is not None else ()

    @property
    def over(self) -> bool:
        return time.monotonic() > self._deadline

    def adopts(self, steps: list[Step]) -> bool:
        """Run the steps; keep them, as they were run, if they break the invariant too."""
        if self.best is not None and self.over:
            return False
        session = self._make_session()
        session.stamps = session.stamps and self.stamp
        self.unit = session.contract.alignment
        again = run_program(session, steps)
        if again is None or not self._is_the_same(again):
            return False
        if self.best is not None and _size(again) >= _size(self.best) and self.stamp:
            return False  # a free that is left out comes back in the end: no progress
        self.best = again
        return True

    def _is_the_same(self, again: ViolationError) -> bool:
        # Where many blocks are live, damage is seen some steps late, and the step at which it is seen gets
        # the blame. In a short program it is seen at once, so the shorter one has the right name.
        return again.invariant == self._wanted.invariant or (again.damage and self._wanted.damage)


def _leave_out(search: _Search) -> None:
    width = max(1, len(search.steps) // 2)
    while True:
        at = 0
        while at < len(search.steps):
            steps = list(search.steps)
            if not search.adopts(steps[:at] + steps[at + width :]):
                at += width
        if width == 1 or search.over:
            return
        width //= 2


def _merge(search: _Search) -> None:
    """Put one request in place of several that follow each other: memory is filled by one as by many."""
    width = len(search.steps)
    while width > 1 and not search.over:
        at = 0
        while at + 1 < len(search.steps):
            steps = list(search.steps)
            run = [step for step in steps[at : at + width] if isinstance(step, Malloc) and not step.refused]
            if len(run) < 2 or len(run) < len(steps[at : at + width]):
                at += 1
                continue
            total = sum(align_up(step.nbytes, search.unit) for step in run[:-1]) + run[-1].nbytes
            if not search.adopts([*steps[:at], replace(run[0], nbytes=total), *steps[at + width :]]):
                at += 1
        width //= 2


def _make_small(search: _Search) -> None:
    index = 0
    while index < len(search.steps):
        step = search.steps[index]
        if isinstance(step, Malloc):
            for plainer in ({"stream": None}, {"alignment": None}):
                if any(getattr(step, name) is not None for name in plainer):
                    _adopts_instead(search, index, replace(search.steps[index], **plainer))  # type: ignore[type-var]
            _bisect_size(search, index)
        index += 1


def _bisect_size(search: _Search, index: int) -> None:
    """Find the smallest size that still breaks it, as if all above did too."""
    low, length = 0, len(search.steps)  # `low` is known to be too small, but for 0
    step = search.steps[index]
    assert isinstance(step, Malloc)
    high = step.nbytes
    for tried in (1, (high + 1) // 2):
        if low < tried < high and _adopts_instead(search, index, replace(step, nbytes=tried)):
            high = tried
        elif tried < high:
            low = tried
    while high - low > 1 and len(search.steps) == length and not search.over:
        middle = (low + high) // 2
        if _adopts_instead(search, index, replace(step, nbytes=middle)):
            high = middle
        else:
            low = middle


def _adopts_instead(search: _Search, index: int, step: Step) -> bool:
    steps = list(search.steps)
    if index >= len(steps):
        return False
    steps[index] = step
    return search.adopts(steps)


def _size(error: ViolationError | None) -> tuple[int, int, int]:
    """Return what is to become less: steps, bytes, and streams and alignments that are named."""
    steps = error.program.steps if error is not None else ()
    requests = [step for step in steps if isinstance(step, Malloc)]
    named = sum((each.stream is not None) + (each.alignment is not None) for each in requests)
    return len(steps), sum(each.nbytes for each in requests), named
