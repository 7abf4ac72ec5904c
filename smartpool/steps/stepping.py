"""Steps of one pool: which is recorded, which is planned, which has its region.

A repetition that is marked (`SmartPool.step`) is watched the first time, then planned, and served from its
plan from then on. Each stream of a step has a plan and a region of its own.

Rule: a plan never makes the pool hold more memory. Regions are made of what is free; where that is too
little the heap serves the step, and the plan waits for another repetition. A region stays for the next
repetition of its step, and goes back when another kind of step begins, when its plan is dropped, when the
program does something else, when memory is trimmed or ages, and before anything grows: then the step is
*left*, at once and whatever is live in it (`smartpool.steps.region`).

The pool's lock guards all of it; the planner works beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from smartpool.errors import CaptureError, StepError
from smartpool.pool.bins import Bin, RequestObserver
from smartpool.pool.slow_path import SlowPath
from smartpool.steps.planned import PlannedStep
from smartpool.steps.planning import Planning
from smartpool.steps.plans import Sequence, StepPlan, Watch, make_plan, sequences
from smartpool.steps.stand_ins import CountingBin, ProxyBin

__all__ = ["StepStatistics", "Steps"]

MOST: Final = 1 << 20
"""Requests and frees of the longest step that is planned."""
MOST_BINS: Final = 4096
"""Bins of a stream, beyond which requests that a plan does not know are not counted."""
AT_ONCE: Final = 256
"""Requests and frees of the longest step that is planned by whoever ends it."""

_HERE_SECONDS: Final = 1.0  # for planning it there; nearly all such steps take 2 to 6 ms
_THERE_SECONDS: Final = 5.0  # on a thread
_AGREEMENT: Final = 0.99  # of two repetitions' requests, for threads to take part in the same order
MOST_NAMES: Final = 64
"""Kinds of steps of which plans are kept."""
_PATIENCE: Final = 64  # steps that are served unplanned, at most, after plans that were of no use
_LOWER: Final = 1 / 8  # of a region, by which it is made lower where there is too little memory for it
_LOWERED: Final = 3  # times
_PIECES: Final = 16  # what is free beside a region lies in at most so many pieces, one hopes
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
    left
        Repetitions that the heap took over in the middle: memory was short, or the program did something
        else than planned.
    planned_bytes
        Bytes of the regions that are held now.
    """

    recorded: int = 0
    planned: int = 0
    hits: int = 0
    misses: int = 0
    left: int = 0
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
    held
        The steps whose plans hold memory: of one name, but for those that are left.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._plans: dict[str, dict[int, StepPlan]] = {}
        self._planning: dict[str, Planning] = {}
        self._before: dict[str, dict[int, Sequence]] = {}  # last time, where several threads took part
        self._doubts: dict[str, tuple[int, int]] = {}  # plans that were of no use, and steps to wait
        self._names: dict[str, None] = {}  # that the above know of; the latest is the last
        self._name: str | None = None
        self._owner = 0
        self._watch: Watch | None = None
        self._serving: dict[int, PlannedStep] = {}
        self._proxies: list[tuple[dict[int, Bin], ProxyBin]] = []
        self._lowered: dict[str, int] = {}  # how often the regions of a plan were made lower
        self._refused = False  # whether there was no memory for a region of the step under way
        self._recorded = self._left = 0
        self._past = [0, 0, 0]  # repetitions, hits and misses of regions that are gone
        self.held: list[PlannedStep] = []

    @property
    def active(self) -> bool:
        """Whether a marked step is under way, on any thread."""
        return self._name is not None

    # ------------------------------------------------------------------ marks

    def begin(self, name: str, pool: SlowPath, add_observer: Callable[[RequestObserver], None]) -> None:
        """Begin a step: planned when its plan is there, recorded by an observer when none is under way."""
        if self._name is not None:
            raise StepError(f"expected no step under way, {self._name!r} is; steps do not nest")
        self._remember(name)
        self._adopt(name)
        ready = self._enabled and not self._waits(name)
        plans = self._plans.get(name) if ready else None
        self.leave(pool, keep=None if plans is None else name)
        self._refused = False
        if plans is not None:
            self._serve_plans(name, plans, pool)
        elif ready and name not in self._planning:
            self._watch = Watch(MOST, pool.front)
            add_observer(self._watch)
        self._name, self._owner = name, threading.get_ident()
        self._attend(pool)

    def end(self, pool: SlowPath, remove_observer: Callable[[RequestObserver], None]) -> Planning | None:
        """End the step that is under way on this thread; return what is to be planned here and now."""
        name = self._name
        if name is None or self._owner != threading.get_ident():
            raise StepError("expected to end a step on the thread that began it")
        self._name = None
        served = self._stop_serving()
        self._attend(pool)
        if served or self._refused:
            self._judge(name, served)
        watch, self._watch = self._watch, None
        if watch is None:
            return None
        remove_observer(watch)
        self._recorded += 1
        if not watch.log or watch.full:
            return None
        before, owner = self._before.get(name), self._owner
        planning = self._planning[name] = Planning(lambda: self._plan(name, watch, owner, before))
        if len(watch.log) <= AT_ONCE:
            return planning
        planning.start()
        return None

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
                if name in self._names:
                    self._before[name] = everyone
                return {}
        self._before.pop(name, None)
        seconds = _HERE_SECONDS if len(watch.log) <= AT_ONCE else _THERE_SECONDS
        return {stream: make_plan(sequence, seconds=seconds) for stream, sequence in chosen.items()}

    def _remember(self, name: str) -> None:
        """Make `name` the latest; forget what is known of the one that did not come for longest."""
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) > MOST_NAMES:
            oldest = next(iter(self._names))
            del self._names[oldest]
            for table in (self._plans, self._planning, self._before, self._doubts, self._lowered):
                table.pop(oldest, None)

    def _adopt(self, name: str) -> None:
        planning = self._planning.get(name)
        if planning is not None and planning.done:
            del self._planning[name]
            plans = planning.result()
            if any(plan.height for plan in plans.values()):
                self._plans[name] = plans
            elif plans:  # all of it outlived the repetition, as in a first one that sets up: try a later one
                self._doubt(name)

    def _waits(self, name: str) -> bool:
        """Whether it is too early to try again what was of no use."""
        dropped, steps = self._doubts.get(name, (0, 0))
        if steps:
            self._doubts[name] = (dropped, steps - 1)
        return steps > 0

    def _doubt(self, name: str) -> None:
        """Let the next attempt at planning or serving a step wait for twice as long as the last."""
        dropped = self._doubts.get(name, (0, 0))[0] + 1
        self._doubts[name] = (dropped, min(2 ** (dropped - 1) - 1, _PATIENCE))

    def _judge(self, name: str, served: list[PlannedStep]) -> None:
        """Drop a plan that did not fit, and try ever later again what was of no use."""
        changed = any(step.changed for step in served)
        if not (changed or self._refused or any(step.left for step in served)):
            self._doubts.pop(name, None)
            return
        self._doubt(name)
        if changed:
            self._plans.pop(name, None)
            self._lowered.pop(name, None)
            for step in served:
                step.leave()

    # ------------------------------------------------------------------ serving

    def _serve_plans(self, name: str, plans: dict[int, StepPlan], pool: SlowPath) -> None:
        """Begin to serve, as far as there is memory for the regions now."""
        steps = [step for step in self.held if not step.left]  # of this name: `begin` left the others
        if not steps:
            steps = self._take_up(name, plans, pool)
            self._refused = not steps and name in self._plans  # else a lower one is on its way
        for step in steps:
            bins = pool.bins_of.setdefault(step.stream, {})
            for nbytes, proxy in step.proxies.items():
                proxy.home = pool.bin_of(nbytes, step.stream)
                self._put(bins, proxy)
            step.begin()
            self._serving[step.stream] = step
            if len(bins) <= MOST_BINS:
                for bin_ in list(bins.values()):
                    if bin_.home is bin_:
                        self._put(bins, CountingBin(bin_, step))

    def _take_up(self, name: str, plans: dict[int, StepPlan], pool: SlowPath) -> list[PlannedStep]:
        """Make the regions of a plan, as far as there is memory; or nearly: then, plan lower ones."""
        steps, lower = [], dict[int, tuple[int, int]]()
        for stream, plan in plans.items():
            base = pool.acquire_region(plan.height, stream) if plan.height else None
            if base is not None:
                steps.append(PlannedStep(name, plan, base, stream, pool.live, pool.bin_of))
                self.held.append(steps[-1])
            elif plan.height:
                room, rest = pool.room_bytes()
                piece = rest // _PIECES
                room -= self._lowered.get(name, 0) * piece  # what is free lies a little differently each time
                if room >= (1 - _LOWER) * plan.height:
                    lower[stream] = room, piece
        if lower and self._lowered.get(name, 0) < _LOWERED:
            self._lowered[name] = self._lowered.get(name, 0) + 1
            del self._plans[name]
            self._planning[name] = Planning(
                lambda: {
                    stream: make_plan(
                        plan.sequence, room_bytes=lower[stream][0], piece_bytes=lower[stream][1]
                    )
                    if stream in lower
                    else plan
                    for stream, plan in plans.items()
                }
            )
            self._planning[name].start()
        return steps

    def serve(self, bin_: Bin, pool: SlowPath) -> int | None:
        """Return a planned slot for a request, entered as live, or None: the heap serves it."""
        step = self._serving.get(bin_.stream)
        if step is None:
            return None
        pointer = step.serve(bin_.nbytes, pool.order_behind)
        if step.lost and not step.left:
            self._leave(step, pool)
            self.sweep(pool)
        return pointer

    def _attend(self, pool: SlowPath) -> None:
        """See the requests of the pool that find no bin, while that is of use."""
        attentive = any(not step.left for step in self._serving.values())
        pool.planned = self if attentive else None
        pool.look_again()

    def _put(self, bins: dict[int, Bin], proxy: ProxyBin) -> None:
        bins[proxy.nbytes] = proxy
        self._proxies.append((bins, proxy))

    def _stop_serving(self) -> list[PlannedStep]:
        for bins, proxy in self._proxies:
            if bins.get(proxy.nbytes) is proxy:  # a closed pool has none any more
                bins[proxy.nbytes] = proxy.home
        self._proxies.clear()
        served = list(self._serving.values())
        self._serving.clear()
        for step in served:
            step.end()
        return served

    # ------------------------------------------------------------------ memory

    def leave(self, pool: SlowPath, *, keep: str | None = None) -> None:
        """Let the heap serve all steps but `keep`, and have their memory, as far as nothing is live there."""
        for step in self.held:
            if not step.left and step.name != keep:
                self._leave(step, pool)
        self.sweep(pool)

    def _leave(self, step: PlannedStep, pool: SlowPath) -> None:
        if self._serving.get(step.stream) is step:
            self._left += 1
        step.leave()
        for bins, proxy in self._proxies:
            if proxy.stream == step.stream and bins.get(proxy.nbytes) is proxy:
                bins[proxy.nbytes] = proxy.home
        self._attend(pool)

    def sweep(self, pool: SlowPath) -> None:
        """Give back what is live no more of the steps that were left."""
        for step in [step for step in self.held if step.left]:
            if step.give_back(pool):
                self.held.remove(step)
                for number, count in enumerate((step.repetitions, step.past_hits, step.past_misses)):
                    self._past[number] += count

    def give_way(self, pool: SlowPath) -> None:
        """Let the heap serve all steps."""
        self.leave(pool)

    def before_flush(self, pool: SlowPath) -> None:
        """Give back what is live no more."""
        self.sweep(pool)

    def before_capture(self) -> None:
        """Refuse it in the middle of a step."""
        if self.active:
            raise CaptureError("expected no planned step under way when a capture begins; end it first")

    def keeps_open(self) -> bool:
        """Nothing: a plan goes with its pool."""
        return False

    def recover(self, pool: SlowPath) -> None:
        """Learn which blocks of the heap the regions are, after an exception in the middle."""
        for step in self.held:
            step.region.mend(pool.heap.block_size)

    def close(self) -> None:
        """Serve nothing any more: the pool is closed."""
        for step in self._serving.values():
            step.close()
        self._serving.clear()
        self._proxies.clear()

    # ------------------------------------------------------------------ questions

    def regions(self) -> list[tuple[int, int]]:
        """Return address and bytes of the blocks of the heap that are held."""
        return [block for step in self.held for block in step.region.blocks()]

    @property
    def planned_bytes(self) -> int:
        """Bytes of the regions that are held now."""
        return sum([nbytes for _, nbytes in self.regions()])

    def check(self, pool: SlowPath) -> None:  # noqa: ARG002 - as `Attachment`
        """Prove the invariants of every step that holds memory."""
        for step in self.held:
            step.check()

    @property
    def statistics(self) -> StepStatistics:
        """Counts so far."""
        return StepStatistics(
            recorded=self._recorded,
            planned=self._past[0] + sum(step.repetitions for step in self.held),
            hits=self._past[1] + sum(step.past_hits + step.hits for step in self.held),
            misses=self._past[2] + sum(step.past_misses + step.misses for step in self.held),
            left=self._left,
            planned_bytes=self.planned_bytes,
        )


def _agree(earlier: Sequence, later: Sequence) -> bool:
    """Whether two repetitions made the same requests, but for a few."""
    if len(earlier) != len(later):
        return False
    same = sum(a == b for a, b in zip(earlier.nbytes, later.nbytes, strict=True))
    return same >= _AGREEMENT * len(later)
