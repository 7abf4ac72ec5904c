"""Hypothesis within a budget: examples, seconds, and the shortest violation that was seen.

Hypothesis bounds examples and not time. Here a fresh session may be refused: then the search ends, wherever
it is, and what was found until then counts. The shortest violation is kept by us rather than parsed from
what Hypothesis prints, so an allocator that does not do the same twice is told all the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from smartpool.errors import ConfigurationError
from smartpool.testing.contract import Contract
from smartpool.testing.invariants import Found, Invariant, ViolationError, violation
from smartpool.testing.reducing import reduced
from smartpool.testing.session import Session
from smartpool.testing.steps import Call

__all__ = ["Hunt"]

_SHORTENING_S: Final = 5.0  # a violation that was found late is made short for this long at least


class _SpentError(BaseException):
    """The budget is spent. Not an `Exception`, so that Hypothesis does not take it for a failure."""


class Hunt:
    """The search of one `check_allocator`: what it did, and what it found."""

    def __init__(
        self, contract: Contract, *, examples: int, steps: int, seconds: float, seed: int | None
    ) -> None:
        for name, value in (("examples", examples), ("steps", steps), ("seconds", seconds)):
            if not (isinstance(value, int | float) and value > 0):
                raise ConfigurationError(name, f"expected a budget above 0, got {value!r}")
        self.make_session: Callable[[], Session] = lambda: Session(contract)
        self.examples = 0
        self.steps_done = 0
        self.checked: Counter[Invariant] = Counter()
        self.found: ViolationError | None = None
        self.found_after = 0
        self.found_at = 0.0
        self._budget = self._limit = examples
        self._steps = steps
        self.seed = seed
        self._begin = time.monotonic()
        self._deadline = self._begin + seconds
        self._seconds = seconds
        self._current: Session | None = None

    @property
    def seconds_spent(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self._begin

    def begin(self, make_session: Callable[[], Session]) -> Session:
        """Return a session for one more example, or end the search when the budget is spent."""
        self._count_current()
        if time.monotonic() > self._deadline or (self.found is None and self.examples >= self._limit):
            raise _SpentError
        self._current = make_session()
        return self._current

    def run(
        self, search: Callable[[settings], None], target: Any, examples: int, *, shrink: bool = False
    ) -> None:
        """Let Hypothesis search with `examples` examples, unless something was found already.

        Without `shrink` it stops at the first violation: `reduced` makes that short, in fewer runs.
        """
        if self.found is not None or self.seconds_spent > self._seconds:
            return
        self._limit = self.examples + examples  # Hypothesis does not count programs that it gave up half-way
        if self.seed is not None:
            seeded(self.seed)(target)
        configured = settings(
            max_examples=examples,
            stateful_step_count=self._steps,
            deadline=None,
            database=None,
            derandomize=False,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            verbosity=Verbosity.quiet,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        with suppress(_SpentError, ViolationError, Flaky):
            search(configured)
        self._count_current()

    def run_machine(self, machine: Any, examples: int, *, shrink: bool, **attributes: Any) -> None:
        """Let Hypothesis search with a state machine that has further class attributes."""
        begin = self.begin

        def make_session(self: Any) -> Session:
            return begin(lambda: machine.make_session(self))

        hunted: Any = type(machine.__name__, (machine,), {"make_session": make_session, **attributes})
        self.run(
            lambda settings: run_state_machine_as_test(hunted, settings=settings),
            hunted,
            examples,
            shrink=shrink,
        )

    def raise_if_found(self) -> None:
        """Raise the shortest violation, with how it was found."""
        best: ViolationError | None = self.found
        if best is None:
            return
        again = True
        if not any(isinstance(step, Call) for step in best.program.steps):
            shorter = reduced(self.make_session, best, seconds=max(self._seconds, _SHORTENING_S))
            again, best = shorter is not None, shorter or best
        found = Found(
            examples=self.found_after, budget=self._budget, seconds=self.found_at, seed=self.seed, again=again
        )
        raise violation(best.invariant, best.detail, best.program, found=found)

    def _count_current(self) -> None:
        session, self._current = self._current, None
        if session is None:
            return
        self.examples += 1
        self.steps_done += len(session.steps)
        self.checked += session.checked
        broken = session.broken
        if broken is None:
            return
        if self.found is None:
            self.found_after, self.found_at = self.examples, self.seconds_spent
            self._deadline = time.monotonic() + max(self._seconds, _SHORTENING_S)
            self.found = broken
        elif broken.invariant == self.found.invariant and len(broken.program) < len(self.found.program):
            self.found = broken
