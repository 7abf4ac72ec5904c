"""Recognition, online: when to watch, when to plan, when to serve, and when to stop.

Problem: notice that a program repeats itself, without slowing down one that does not. Watching every
request costs 0.5 us, twice what a request costs.
Method: look only where it hurts. A request that finds its bin is not worth a plan, so nothing happens
as long as bins serve; every so many times that bins had to be emptied, the pool asks here.

    resting --(it hurts)--> watching --(a period)--> at the door --(the cut)--> serving
       ^                        |                         |                        |
       +------------------------+-------------------------+------------------------+
         nothing in so many requests   not seen again         something else is done

*Watching* writes requests and frees down, and every now and then has the log searched for a period and
planned, on another thread (`smartpool.pool.steps.repetition`). A period that is found is planned if it
*pays*: if enough of its requests were searched for. At *the door*, requests of the size with which a
repetition begins come here, until one follows the end of a repetition (the last `CONTEXT` requests).
There, at the cut, fewest of the blocks that a plan would hold are live, and their memory idles: the
region is made of that, never of new memory; where it is not enough, what is free in small pieces beside it is
left to the heap, with as many requests as it takes. *Serving* then
goes on, one repetition after the other, until too much is different.
Bound: for each request that was watched and is not made up for by one that was served from a plan, a
rest of `REST` searches follows. So watching and looking take at most some 6 % of the time that
searching takes, whatever the program does. After a watch that found nothing the next is twice as
long, so that long periods are found too.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import TYPE_CHECKING, Final

from smartpool.errors import StepError
from smartpool.log import LOGGER
from smartpool.pool.steps.aside import Aside
from smartpool.pool.steps.faces import DoorBin
from smartpool.pool.steps.plans import Sequence, StepPlan, load_of, make_plan
from smartpool.pool.steps.repetition import EVIDENCE, agreeing_periods, repetition_in
from smartpool.pool.steps.watching import LogEntry, Watch, busiest_thread, sequences

if TYPE_CHECKING:
    from smartpool.pool.bins import Bin
    from smartpool.pool.steps.planned import PlannedStep
    from smartpool.pool.steps.pool import StepPool
    from smartpool.pool.steps.stepping import Steps

__all__ = ["NEVER", "REST", "Recognition"]

NEVER: Final = 1 << 62
REST: Final = 10
"""Searches (1.7 us and more each) that follow for each request watched in vain (1 us with all it takes)."""
PAYS: Final = 0.15
"""Share of requests that were searched for, from which a plan costs less than bins."""
WORTH: Final = 3
"""Repetitions after which a plan is kept for the next time."""

_FIRST: Final = 64  # flushes before the first watch
_OFTEN: Final = 8  # flushes between two looks while watching
_STALLED: Final = 16  # flushes without a planned request, after which the program does something else
_SHORT: Final = 16384  # requests and frees of the first watch
_LONG: Final = 1 << 20  # and of the longest
_CONTEXT: Final = 16  # requests that tell the end of a repetition
_PERIODS: Final = 3  # to wait at the door
_PLANNED: Final = 0.75  # of the requests of a repetition are in the plan, or it is not worth serving
_OWN: Final = 0.8  # of all requests are those of a thread that is served alone
_ATTEMPTS: Final = 3  # to make a plan that fits
_SPARE: Final = 0.03  # of the load, at most, is left to the heap before it is known what there is room for
_PIECES: Final = 8  # what is free beside a region lies in at least half as many pieces, one expects
_KNOWN: Final = 4  # plans that are kept for when the program comes back to them


@dataclass(frozen=True, slots=True)
class Found:
    """A repetition that was recognised.

    Attributes
    ----------
    sequence, plan
        Its requests, and how they are served.
    stream, thread
        Where they were made; no thread where several take turns.
    watched
        Requests that were watched until it was found.
    spare_bytes, piece_bytes, attempts
        By how much its region is lower than the load, how large the requests are that are left to the
        heap for that, and how often it was made lower yet.
    """

    sequence: Sequence
    stream: int
    thread: int | None
    watched: int
    spare_bytes: int
    piece_bytes: int
    attempts: int = 0
    plan: StepPlan = field(init=False)

    def __post_init__(self) -> None:
        spare, piece = self.spare_bytes, self.piece_bytes
        object.__setattr__(self, "plan", make_plan(self.sequence, spare_bytes=spare, piece_bytes=piece))

    def begins_with(self, bin_: Bin) -> bool:
        """Whether a request of this thread that finds no block in `bin_` may be the first."""
        first = self.plan.nbytes[0] == bin_.nbytes and self.stream == bin_.stream
        return first and self.thread in {None, get_ident()}

    def ends(self, watch: Watch) -> bool:
        """Whether the last requests were the end of a repetition."""
        context = self.plan.nbytes[-_CONTEXT:]
        return watch.latest(self.stream, len(context), thread=self.thread) == [*context]


class Recognition:
    """What one pool knows of repetitions that nobody marked. The pool's lock guards it.

    Parameters
    ----------
    after
        Searches of the pool before the first watch.

    Attributes
    ----------
    first_look
        How often the bins are emptied before the first look.
    synchronous
        Wait for the thread that looks for a period: for tests, and for replays in no time.
    entered, given_up
        How often a plan was entered, and left again.
    watched
        Requests and frees that were watched.
    """

    def __init__(self, after: int = 0) -> None:
        self.first_look = _FIRST
        self.synchronous = False
        self.entered = self.given_up = 0
        self._past_watched = 0
        self._watch: Watch | None = None
        self._limit = _SHORT
        self._check_at = 0
        self._searched = 0  # the pool's searches when the watch began
        self._analysis: Aside[Found | None] | None = None
        self._known: list[Found] = []
        self._serving: Found | None = None
        self._rest_until = after
        self._progress = -1
        self._spent = 0  # requests that were watched and have brought nothing yet

    @property
    def watched(self) -> int:
        """Requests and frees that were watched."""
        return self._past_watched + (len(self._watch.log) if self._watch else 0)

    # ------------------------------------------------------------------ looking

    def look(self, pool: StepPool, steps: Steps) -> int:
        """Go on from where we are; return how often the bins are emptied before the next look."""
        step = steps.recognised
        if step is not None:
            progress = step.past_hits + step.hits
            if progress == self._progress:
                return self.left(step, pool, steps)
            self._progress = progress
            return pool.flushes + _STALLED
        if self._watch is None:
            if pool.searches < self._rest_until:
                return pool.flushes + _FIRST
            self._begin_watch(self._limit, pool)
            self._show_doors(pool, steps)
        elif self._analysis is not None:
            if self._analysis.done:
                self._take_result(self._analysis, pool, steps)
        elif len(self._watch.log) >= self._check_at:
            self._analyse(self._watch.log.copy(), pool)
        elif self._watch.full:
            self._give_up_watching(pool, steps)
        return pool.flushes + _OFTEN

    def at_door(self, bin_: Bin, pool: StepPool, steps: Steps) -> PlannedStep | None:
        """Return the step that a request begins, if it is the first of a repetition."""
        watch = self._watch
        if self._analysis is not None:
            return None  # a plan is on its way
        if watch is None or watch.full:
            self._give_up_watching(pool, steps)
            return None
        for found in self._known:
            if found.begins_with(bin_) and found.ends(watch):
                steps.look_at = NEVER  # making room empties bins
                step = steps.enter(found.plan, found.stream, pool)
                if step is None:
                    self._replan(found, pool)
                else:
                    self._end_watch(pool)
                    self.entered += 1
                    self._serving, self._progress = found, -1
                steps.look_at = pool.flushes + _OFTEN
                return step
        return None

    def left(self, step: PlannedStep, pool: StepPool, steps: Steps) -> int:
        """Stop serving: the program does something else, or needs the memory. Returns as `look`."""
        found, self._serving = self._serving, None
        self.given_up += 1
        if step.repetitions < WORTH:
            self._known = [one for one in self._known if one is not found]
        self._rest(max(0, self._spent - step.past_hits - step.hits), pool)
        self._spent = 0
        steps.leave(pool)
        return pool.flushes + _OFTEN

    def stop(self, pool: StepPool, steps: Steps) -> None:
        """Watch and serve nothing any more, until the next look."""
        if steps.recognised is not None:
            self.given_up += 1
            self._serving = None
        self._end_watch(pool)
        steps.leave(pool)

    # ------------------------------------------------------------------ watching

    def _begin_watch(self, limit: int, pool: StepPool) -> None:
        self._watch = Watch(limit, _ending(pool), pool.late_frees)
        self._searched = pool.searches
        self._check_at = max(limit // 2, 2 * EVIDENCE)
        pool.add_observer(self._watch)

    def _end_watch(self, pool: StepPool) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            pool.remove_observer(watch)
            self._past_watched += len(watch.log)
            self._spent += len(watch.log) // 2
        self._analysis = None

    def _give_up_watching(self, pool: StepPool, steps: Steps) -> None:
        self._limit = min(2 * self._limit, _LONG)
        self._end_watch(pool)
        steps.close_doors()
        self._rest(self._spent, pool)
        self._spent = 0

    def _rest(self, requests: int, pool: StepPool) -> None:
        self._rest_until = max(self._rest_until, pool.searches + REST * requests)

    def _show_doors(self, pool: StepPool, steps: Steps) -> None:
        for found in self._known:
            first = pool.bin_of(found.plan.nbytes[0], found.stream)
            steps.show_door(pool.bins_of(found.stream), DoorBin(first))

    # ------------------------------------------------------------------ finding

    def _analyse(self, log: list[LogEntry], pool: StepPool) -> None:
        """Look for a period: when the watch has seen half of what it will, and when it is over."""
        self._check_at = self._limit if len(log) < self._limit else NEVER
        _, rest = pool.room_bytes()  # what a region cannot have, as far as one can say by now
        self._aside(lambda: _find(log, rest))

    def _aside(self, work: Callable[[], Found | None]) -> None:
        self._analysis = Aside(work)
        if self.synchronous:
            self._analysis.wait()

    def _take_result(self, analysis: Aside[Found | None], pool: StepPool, steps: Steps) -> None:
        try:
            found = analysis.result()
        except StepError:
            LOGGER.exception("looking for repetition failed; requests are served as always")
            self._give_up_watching(pool, steps)
            self._rest_until = NEVER
        else:
            self._found(found, pool, steps)

    def _replan(self, found: Found, pool: StepPool) -> None:
        """Plan a smaller region, as there is no room for this one, and leave more to the heap."""
        self._known.remove(found)
        if found.attempts == _ATTEMPTS:
            return
        room, rest = pool.room_bytes()
        piece, attempts = rest // _PIECES, found.attempts + 1
        # What is free lies a little differently each time.
        spare = found.spare_bytes + found.plan.height - room + found.attempts * piece
        self._aside(lambda: replace(found, spare_bytes=spare, piece_bytes=piece, attempts=attempts))

    def _found(self, found: Found | None, pool: StepPool, steps: Steps) -> None:
        """Wait at the door for what was found, if it pays."""
        self._analysis = None
        if found is None:
            return
        pays = found.attempts or pool.searches - self._searched >= PAYS * found.watched
        if not pays or found.plan.planned < _PLANNED * len(found.sequence):
            self._give_up_watching(pool, steps)
            return
        again = [one for one in self._known if one.sequence.nbytes != found.sequence.nbytes]
        self._known = [found, *again][:_KNOWN]
        self._limit = _SHORT
        self._end_watch(pool)
        steps.close_doors()
        self._begin_watch(2 * _PERIODS * len(found.plan.nbytes) + 2 * _CONTEXT, pool)
        self._check_at = NEVER
        self._show_doors(pool, steps)


def _find(log: list[LogEntry], rest_bytes: int) -> Found | None:
    """Look for a repetition in a log and plan it. On a thread of its own."""
    requests = [entry for entry in log if not isinstance(entry, int)]
    (stream, count), *_ = Counter(entry[2] for entry in requests).most_common(1)
    thread = busiest_thread(requests)
    for alone in (None, thread):
        sizes = [nbytes for _, nbytes, on, by in requests if on == stream and alone in {None, by}]
        if (alone is not None and not _OWN * count < len(sizes) < count) or not agreeing_periods(sizes):
            continue  # before the log is read in full: most often that is all
        repetition = repetition_in(sequences(log, thread=alone)[stream])
        if repetition is not None:
            taking_turns = None if repetition.shared else thread
            spare = min(rest_bytes, int(_SPARE * load_of(repetition)))
            return Found(repetition, stream, taking_turns, count, spare, rest_bytes // _PIECES)
    return None


def _ending(pool: StepPool) -> Callable[[Watch], None]:
    """Return what ends a watch of the pool, which it does not hold."""
    known = weakref.ref(pool)

    def end(watch: Watch) -> None:
        found = known()
        if found is not None:
            found.remove_observer(watch)

    return end
