"""`check_allocator`: the machine and traces of every shape against an allocator, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import given

from smartpool.testing.contract import Contract
from smartpool.testing.hunt import Hunt
from smartpool.testing.invariants import Invariant
from smartpool.testing.machine import AllocatorMachine
from smartpool.testing.session import Session
from smartpool.testing.shapes import play, traces

__all__ = ["Report", "check_allocator"]

_TRACE_SHARE: Final = 5  # one example in five is a trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done without finding a violation; ``print(report)`` is a table.

    Parameters
    ----------
    name
        The factory's name.
    examples, steps
        How many programs were run, and how many steps they had in all.
    seconds
        How long it took.
    seed
        With which it can be repeated; None when it was random.
    checked
        How often each invariant was checked.
    """

    name: str
    examples: int
    steps: int
    seconds: float
    seed: int | None
    checked: Mapping[Invariant, int]

    @property
    def unchecked(self) -> dict[Invariant, str]:
        """The invariants that were never checked, with what the check would need."""
        return {each: each.needs for each in Invariant if not self.checked.get(each)}

    def __str__(self) -> str:
        head = (
            f"{self.name}: no violation in {self.examples} programs of {self.steps} steps, "
            f"{self.seconds:.1f} s, seed {self.seed}"
        )
        counts = {each: self.checked[each] for each in Invariant if self.checked.get(each)}
        rows = [f"  {each.value:<26}{count:>9} times" for each, count in counts.items()]
        left_out = [f"  {each.value:<26}not checked: {why}" for each, why in self.unchecked.items()]
        return "\n".join([head, *rows, *left_out])


def check_allocator(
    factory: Callable[..., Any],
    *,
    examples: int = 250,
    steps: int = 40,
    seconds: float = 20.0,
    seed: int | None = 0,
    machine: type[AllocatorMachine] = AllocatorMachine,
    **options: Any,
) -> Report:
    """Attack an allocator with random programs; return a report, or raise with the shortest that breaks it.

    Parameters
    ----------
    factory
        Makes a fresh allocator: an object with ``malloc``/``free`` or ``allocate``/``deallocate``, or a
        pair of callables. It is called once for each program.
    examples, steps
        The budget: how many programs, and the longest of them.
    seconds
        The budget in time. Whichever is spent first ends the search; a violation that was found is made
        short for as long again.
    seed
        Of the search. None for another one each time.
    machine
        A subclass of `AllocatorMachine` with rules of your own.
    **options
        Every other field of `Contract`: what the allocator promises and what may be looked at. The report
        says which invariants could not be checked, and what that would need.

    Raises
    ------
    ViolationError
        When an invariant is broken: its name, what was seen, and the shortest program as runnable Python.
    ConfigurationError
        When an option is wrong.

    Examples
    --------
    >>> from smartpool import AdvancedMemoryPoolManager
    >>> options = {"driver": "model:4MiB", "close": "close", "examples": 20}
    >>> report = check_allocator(AdvancedMemoryPoolManager, **options)
    >>> report.checked["no overlap"] > 50
    True
    >>> def one_address():
    ...     return (lambda nbytes: 4096), (lambda address: None)
    >>> check_allocator(one_address, bad_frees="undefined", bad_sizes="undefined")
    Traceback (most recent call last):
    smartpool.testing.invariants.NoOverlapError: no overlap: b [0x1000, +1) and a [0x1000, +1) share bytes
    <BLANKLINE>
        # factory: what the check was given
    <BLANKLINE>
        malloc, free = factory()
        a = malloc(1)
        b = malloc(1)
        assert b + 1 <= a + 1 or a + 1 <= b
    """
    contract = Contract(factory=factory, **options)
    hunt = Hunt(contract, examples=examples, steps=steps, seconds=seconds, seed=seed)

    @given(traces(contract, streams=None))
    def play_traces(trace: Any) -> None:
        session = hunt.begin(lambda: Session(contract))
        try:
            play(trace, session)
        except BaseException:
            session.abandon()
            raise
        session.finish()

    on_traces = examples // _TRACE_SHARE
    hunt.run_machine(machine, examples - on_traces, shrink=machine is not AllocatorMachine, contract=contract)
    if on_traces:
        hunt.run(lambda settings: settings(play_traces)(), play_traces, on_traces)
    hunt.raise_if_found()
    return report_of(hunt, factory)


def report_of(hunt: Hunt, factory: Callable[..., Any]) -> Report:
    """Return the report of a search that found nothing."""
    return Report(
        name=getattr(factory, "__name__", repr(factory)),
        examples=hunt.examples,
        steps=hunt.steps_done,
        seconds=hunt.seconds_spent,
        seed=hunt.seed,
        checked=dict(hunt.checked),
    )
