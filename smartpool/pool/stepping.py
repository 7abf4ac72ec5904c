"""Steps of one pool: which is recorded, which is planned, which has its region.

One region exists at a time. It is acquired when a planned step begins, stays for the next
repetition, and is given back when memory is short or trimmed, when another kind of step begins,
and when its plan is dropped, in each case only while no slot is live; a region that cannot be
given back yet waits among the *left* ones.

The pool's lock guards all of it; the planner works on a thread of its own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from smartpool.errors import OutOfMemoryError, StepError
from smartpool.pool.bins import Bin
from smartpool.pool.steps import PlannedStep, RecordedStep, SlotBin, StepPlan, make_plan

__all__ = ["RegionSource", "StepStatistics", "Steps"]


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Counts over the life of a pool.

    Attributes
    ----------
    recorded, planned
        Steps that were recorded, and steps that were served from a plan.
    hits, misses
        Requests in planned steps that were as planned, and that were not.
    planned_bytes
        Bytes of the regions that are held now.
    """

    recorded: int = 0
    planned: int = 0
    hits: int = 0
    misses: int = 0
    planned_bytes: int = 0


class RegionSource(Protocol):
    """Where regions come from: the pool."""

    def acquire_region(self, size: int) -> int:
        """Return the address of a block of `size` bytes; raises `OutOfMemoryError`."""

    def release_region(self, address: int, size: int) -> None:
        """Take the block back."""


class Steps:
    """The steps of one pool, on its default stream.

    It is handed the pool when it needs it, rather than holding it: a pool that nobody holds any
    more is to go at once, not with the next collection.

    Parameters
    ----------
    stream
        The stream of planned requests.
    enabled
        Whether steps are recorded and planned at all.
    """

    def __init__(self, stream: int, *, enabled: bool = True) -> None:
        self._stream = stream
        self._enabled = enabled
        self._plans: dict[str, StepPlan] = {}
        self._planning: dict[str, _Planning] = {}
        self._name: str | None = None
        self._owner = 0
        self._recording: RecordedStep | None = None
        self._resident: tuple[str, PlannedStep] | None = None
        self._serving: PlannedStep | None = None
        self._left: list[PlannedStep] = []
        self._recorded = self._planned = self._hits = self._misses = 0

    @property
    def active(self) -> bool:
        """Whether a step is under way, on any thread."""
        return self._name is not None

    def begin(self, name: str, pool: RegionSource) -> None:
        """Begin a step: planned when its plan is there, recorded when none is under way."""
        if self._name is not None:
            raise StepError(f"expected no step under way, {self._name!r} is; steps do not nest")
        self._adopt(name)
        self.release_idle(pool, keep=name)
        plan = self._plans.get(name)
        if plan is None:
            if self._enabled and name not in self._planning:
                self._recording = RecordedStep()
        elif plan.height:
            self._serving = self._region_of(name, plan, pool)
        self._name, self._owner = name, threading.get_ident()

    def end(self) -> None:
        """End the step that is under way on this thread."""
        name = self._name
        if name is None or self._owner != threading.get_ident():
            raise StepError("expected to end a step on the thread that began it")
        self._name = None
        recording, self._recording = self._recording, None
        serving, self._serving = self._serving, None
        if recording is not None:
            recording.close()
            self._recorded += 1
            if recording.nbytes:
                self._planning[name] = _Planning(recording)
        if serving is not None:
            self._planned += 1
            self._hits += serving.hits
            self._misses += serving.misses
            if serving.must_be_replanned:
                del self._plans[name]

    def slot_for(self, nbytes: int) -> SlotBin | None:
        """Return the planned slot for a request of the step, or None: the heap serves it."""
        if self._serving is None or self._owner != threading.get_ident():
            return None
        return self._serving.serve(nbytes)

    def noted(self, home: Bin) -> Bin:
        """Return the bin to enter for a request that the heap served."""
        if self._recording is None or self._owner != threading.get_ident() or home.stream != self._stream:
            return home
        return self._recording.requested(home)

    def release_idle(self, pool: RegionSource, *, keep: str | None = None) -> None:
        """Give back the regions in which nothing is live, except that of the step `keep`."""
        if self._resident is not None and self._serving is None:
            name, step = self._resident
            if name != keep or name not in self._plans:
                self._resident = None
                self._left.append(step)
        for step in [step for step in self._left if step.idle]:
            pool.release_region(step.base, step.plan.height)
            self._left.remove(step)  # behind what may fail: a region that nobody lists is lost

    def regions(self) -> list[tuple[int, int]]:
        """Return address and bytes of the regions that are held."""
        steps = [*self._left, *([self._resident[1]] if self._resident else [])]
        return [(step.base, step.plan.height) for step in steps]

    @property
    def statistics(self) -> StepStatistics:
        """Counts so far; a step under way counts when it ends."""
        return StepStatistics(
            recorded=self._recorded,
            planned=self._planned,
            hits=self._hits,
            misses=self._misses,
            planned_bytes=sum(size for _, size in self.regions()),
        )

    def wait_for_plan(self, name: str) -> None:
        """Wait for the planner, if it is at work for the step `name`. Needs no lock, and must hold none."""
        planning = self._planning.get(name)
        if planning is not None:
            planning.wait()

    def _adopt(self, name: str) -> None:
        planning = self._planning.get(name)
        if planning is None or not planning.done:
            return
        del self._planning[name]
        self._plans[name] = planning.result()

    def _region_of(self, name: str, plan: StepPlan, pool: RegionSource) -> PlannedStep | None:
        """Return the planned step with its region; None when there is no memory for one now."""
        if self._resident is None:
            try:
                base = pool.acquire_region(plan.height)
            except OutOfMemoryError:
                return None
            self._resident = (name, PlannedStep(plan, base, self._stream))
        step = self._resident[1]
        step.begin()
        return step


class _Planning:
    """The planner at work on a thread."""

    def __init__(self, step: RecordedStep) -> None:
        self._step = step
        self._plan: StepPlan | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="smartpool-planner", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def result(self) -> StepPlan:
        """Return the plan of a thread that is done; raises what the planner raised."""
        if self._plan is None:
            raise StepError("planning a step failed; see the cause") from self._error
        return self._plan

    def _run(self) -> None:
        try:
            self._plan = make_plan(self._step)
        except Exception as error:  # noqa: BLE001 - raised where the next step begins
            self._error = error
