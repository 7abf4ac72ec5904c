"""Steps of one pool: which is recorded, which is planned, which has its region.

A repetition that is marked (`SmartPool.step`) is watched the first time, planned on another thread,
and served from then on. Each stream of a step has a plan and a region of its own.

The regions of one kind of step exist at a time. They are acquired when a planned step begins, stay
for the next repetition, and are given back when memory is short or trimmed, when another kind of
step begins, and when the plan is dropped, in each case only while no slot is live; a region that
cannot be given back yet waits among the *left* ones.

The pool's lock guards all of it; the planner works on a thread of its own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from smartpool.errors import OutOfMemoryError, StepError
from smartpool.pool.bins import Bin
from smartpool.pool.steps.aside import Aside
from smartpool.pool.steps.faces import ExtraBin, FaceBin
from smartpool.pool.steps.planned import PlannedStep
from smartpool.pool.steps.plans import Sequence, StepPlan, Watch, make_plan, sequences
from smartpool.pool.steps.pool import StepPool

__all__ = ["StepStatistics", "Steps"]

MOST: Final = 1 << 20
"""Requests and frees of the longest step that is planned."""
MOST_BINS: Final = 4096
"""Bins of a stream, beyond which requests that a plan does not know are not counted."""
_AGREEMENT: Final = 0.99  # of two repetitions' requests, for threads to take part in the same order
_PATIENCE: Final = 64  # steps that are served unplanned, at most, after plans that were of no use
_FOREIGN: Final = 0.05  # of a step's requests on other threads, from which they may belong to it


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Counts over the life of a pool.

    Attributes
    ----------
    recorded, planned
        Repetitions that were recorded, and repetitions that were served from a plan.
    hits, misses
        Requests of planned repetitions that came as planned, and that did not.
    planned_bytes
        Bytes of the regions that are held now.
    """

    recorded: int = 0
    planned: int = 0
    hits: int = 0
    misses: int = 0
    planned_bytes: int = 0


class Steps:
    """The steps of one pool.

    It is handed the pool when it needs it, rather than holding it: a pool that nobody holds any
    more is to go at once, not with the next collection.

    Parameters
    ----------
    enabled
        Whether steps are recorded and planned at all.

    Attributes
    ----------
    attentive
        Whether requests that find no bin are to be shown to `serve`.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._plans: dict[str, dict[int, StepPlan]] = {}
        self._planning: dict[str, Aside[dict[int, StepPlan]]] = {}
        self._before: dict[str, dict[int, Sequence]] = {}  # last time, where several threads took part
        self._doubts: dict[str, tuple[int, int]] = {}  # plans that were dropped, and steps to wait
        self._name: str | None = None
        self._owner = 0
        self._watch: Watch | None = None
        self._resident: tuple[str, dict[int, PlannedStep]] | None = None
        self._serving: dict[int, PlannedStep] = {}
        self._faces: list[tuple[dict[int, Bin], FaceBin]] = []
        self._left: list[PlannedStep] = []
        self._recorded = 0
        self._past = [0, 0, 0]  # repetitions, hits and misses of regions that are gone
        self.attentive = False

    @property
    def active(self) -> bool:
        """Whether a marked step is under way, on any thread."""
        return self._name is not None

    # ------------------------------------------------------------------ marks

    def begin(self, name: str, pool: StepPool) -> None:
        """Begin a step: planned when its plan is there, recorded when none is under way."""
        if self._name is not None:
            raise StepError(f"expected no step under way, {self._name!r} is; steps do not nest")
        self._adopt(name)
        self.release_idle(pool, keep=name)
        plans = self._plans.get(name)
        if plans is not None:
            self._serve_plans(name, plans, pool)
        elif self._enabled and name not in self._planning and not self._waits(name):
            self._watch = Watch(MOST, pool.late_frees)
            pool.add_observer(self._watch)
        self._name, self._owner = name, threading.get_ident()
        self.attentive = bool(self._serving)

    def end(self, pool: StepPool) -> None:
        """End the step that is under way on this thread."""
        name = self._name
        if name is None or self._owner != threading.get_ident():
            raise StepError("expected to end a step on the thread that began it")
        self._name = None
        self.attentive = False
        watch, self._watch = self._watch, None
        if watch is not None:
            pool.remove_observer(watch)
            self._recorded += 1
            if watch.log and not watch.full:
                before, owner = self._before.get(name), self._owner
                self._planning[name] = Aside(lambda: self._plan(name, watch, owner, before))
        served = self._stop_serving()
        if served:
            self._judge(name, served)

    def wait_for_plan(self, name: str) -> None:
        """Wait for the planner, if it is at work for the step `name`. Needs no lock, and must hold none."""
        planning = self._planning.get(name)
        if planning is not None:
            planning.wait()

    def _plan(
        self, name: str, watch: Watch, owner: int, before: dict[int, Sequence] | None
    ) -> dict[int, StepPlan]:
        """Return a plan for each stream; none where it takes another repetition to know who takes part."""
        own, everyone = sequences(watch.log, thread=owner), sequences(watch.log)
        chosen: dict[int, Sequence] = {}
        for stream, sequence in own.items():
            together = everyone[stream]
            foreign = len(together) - len(sequence)
            if foreign <= _FOREIGN * len(together):
                chosen[stream] = sequence
            elif before is not None:
                earlier = before.get(stream)
                same = earlier is not None and _agree(earlier, together)
                chosen[stream] = together if same else sequence
            else:  # threads that follow one another in the same order take part, others do not
                self._before[name] = everyone
                return {}
        self._before.pop(name, None)
        return {stream: make_plan(sequence) for stream, sequence in chosen.items()}

    def _adopt(self, name: str) -> None:
        planning = self._planning.get(name)
        if planning is not None and planning.done:
            del self._planning[name]
            plans = planning.result()
            if plans:
                self._plans[name] = plans

    def _waits(self, name: str) -> bool:
        """Whether it is too early to plan a step again that keeps changing."""
        dropped, steps = self._doubts.get(name, (0, 0))
        if steps:
            self._doubts[name] = (dropped, steps - 1)
        return steps > 0

    def _judge(self, name: str, served: list[PlannedStep]) -> None:
        """Drop a plan that did not fit. The next is recorded at once, and later ones ever later."""
        if not any(step.changed for step in served):
            self._doubts.pop(name, None)
            return
        dropped = self._doubts.get(name, (0, 0))[0] + 1
        self._doubts[name] = (dropped, min(2 ** (dropped - 1) - 1, _PATIENCE))
        self._plans.pop(name, None)

    def _serve_plans(self, name: str, plans: dict[int, StepPlan], pool: StepPool) -> None:
        """Begin to serve, as far as there is memory for the regions now."""
        if self._resident is None:
            steps: dict[int, PlannedStep] = {}
            try:  # not resident yet: what makes room for one region gives idle resident ones back
                for stream, plan in plans.items():
                    if plan.height:
                        try:
                            base = pool.acquire_region(plan.height, stream)
                        except OutOfMemoryError:
                            continue
                        steps[stream] = PlannedStep(plan, base, stream, pool.live_table, pool.bin_of)
            except BaseException:
                self._left += steps.values()
                raise
            if not steps:
                return
            self._resident = (name, steps)
        for step in self._resident[1].values():
            self._start(step, pool)
            bins = pool.bins_of(step.stream)
            if len(bins) <= MOST_BINS:
                for bin_ in list(bins.values()):
                    if bin_.home is bin_:
                        self._put(bins, ExtraBin(bin_, step))

    # ------------------------------------------------------------------ serving

    def serve(self, bin_: Bin, pool: StepPool) -> int | None:
        """Return a planned slot for a request, entered as live, or None: the heap serves it."""
        step = self._serving.get(bin_.stream)
        if step is None:
            return None
        pointer = step.serve(bin_.nbytes, pool.order_behind)
        if step.lost:
            self._give_up(step)
        return pointer

    def _start(self, step: PlannedStep, pool: StepPool) -> None:
        bins = pool.bins_of(step.stream)
        for nbytes, face in step.faces.items():
            face.home = pool.bin_of(nbytes, step.stream)
            self._put(bins, face)
        step.begin()
        self._serving[step.stream] = step

    def _put(self, bins: dict[int, Bin], face: FaceBin) -> None:
        bins[face.nbytes] = face
        self._faces.append((bins, face))

    def _stop_serving(self) -> list[PlannedStep]:
        for bins, face in self._faces:
            if bins.get(face.nbytes) is face:  # a closed pool has none any more
                bins[face.nbytes] = face.home
        self._faces.clear()
        served = list(self._serving.values())
        self._serving.clear()
        for step in served:
            step.end()
        return served

    def _give_up(self, step: PlannedStep) -> None:
        """Serve a step no more, until its next repetition, that the program has left."""
        for bins, face in self._faces:
            if face.stream == step.stream and bins.get(face.nbytes) is face:
                bins[face.nbytes] = face.home
        step.close()

    # ------------------------------------------------------------------ regions

    def release_idle(self, pool: StepPool, *, keep: str | None = None) -> None:
        """Give back the regions in which nothing is live, except that of the step `keep`."""
        for stream, step in list(self._serving.items()):
            if step.idle:  # memory is worth more than its plan
                self._give_up(step)
                step.end()
                self._left.append(step)
                del self._serving[stream]
                assert self._resident is not None
                del self._resident[1][stream]
        if self._resident is not None and not self._serving:
            name, steps = self._resident
            if name != keep or name not in self._plans:
                self._resident = None
                self._left += steps.values()
        for step in [step for step in self._left if step.idle]:
            # Its list of one says whether the region is gone, should an exception come in between.
            pool.release_region(step.region, step.plan.height, (step.stream, *step.used_by))
            self._left.remove(step)
            for number, count in enumerate((step.repetitions, step.past_hits, step.past_misses)):
                self._past[number] += count

    def close(self) -> None:
        """Serve nothing any more: the pool is closed."""
        for step in self._serving.values():
            step.close()
        self._serving.clear()
        self._faces.clear()
        self.attentive = False

    def regions(self) -> list[tuple[int, int]]:
        """Return address and bytes of the regions that are held."""
        return [(step.base, step.plan.height) for step in self._steps() if step.region]

    def check(self) -> None:
        """Prove the invariants of every step that has a region."""
        for step in self._steps():
            step.check()

    def _steps(self) -> list[PlannedStep]:
        return [*self._left, *(self._resident[1].values() if self._resident else ())]

    @property
    def statistics(self) -> StepStatistics:
        """Counts so far."""
        held = self._steps()
        return StepStatistics(
            recorded=self._recorded,
            planned=self._past[0] + sum(step.repetitions for step in held),
            hits=self._past[1] + sum(step.past_hits + step.hits for step in held),
            misses=self._past[2] + sum(step.past_misses + step.misses for step in held),
            planned_bytes=sum(size for _, size in self.regions()),
        )


def _agree(earlier: Sequence, later: Sequence) -> bool:
    """Whether two repetitions made the same requests, but for a few."""
    if len(earlier) != len(later):
        return False
    same = sum(a == b for a, b in zip(earlier.nbytes, later.nbytes, strict=True))
    return same >= _AGREEMENT * len(later)
