"""Every driver call of every scenario fails, in every way it can; nothing may be lost by it.

A scenario is run once to count its calls, then again with the first, the second, ... the last
failing: once, twice or three times in a row, and from there on for good, so that giving back what was
begun fails as well. `kit/scenarios.py` has the scenarios, `kit/attack.py` what must hold afterwards.
"""

import gc

import call_sites
import pytest
import scenarios
from attack import ALWAYS, KINDS, Caller, attempt, attempt_on_a_lost_device
from scenarios import SCENARIOS

from smartpool.errors import DriverError, StreamError

ELASTIC = (scenarios.stitching, scenarios.windows_one_after_the_other, scenarios.small_and_large)
CASES = [
    (scenario, kind)
    for kind in KINDS
    for scenario in SCENARIOS
    if kind not in ("tight", "cpu") or scenario in ELASTIC + scenarios.READ  # others: as on "balanced"
    if kind not in ("measured", "debug") or scenario in (scenarios.questions, scenarios.copies)
    if kind in ("cpu", "measured", "debug") or scenario not in scenarios.READ
    if kind != "direct" or scenario not in scenarios.NEED_A_HEAP
]
CAN_RUN_OUT = ("create_chunk", "allocate")
CAN_MISS_A_STREAM = ("record_event", "wait_event")


def ways_to_fail(call, nth):
    """Return what can become of the nth driver call: (error, how many calls in a row)."""
    ways = [(None, 1), (None, ALWAYS), (KeyboardInterrupt("in the middle"), 1)]
    ways.append(((None, 2), (None, 3), (MemoryError("of the host"), 1))[nth % 3])
    if call in CAN_RUN_OUT:  # for lack of memory, as above, and for any other reason
        ways.append((DriverError, 1))
    if call in CAN_MISS_A_STREAM:
        ways.append((StreamError("the stream was destroyed"), 1))
    return ways


def name_of(value):
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("scenario", "kind"), CASES, ids=name_of)
def test_every_call_fails(scenario, kind):
    calls = attempt(scenario, kind).calls
    tried = 0
    for nth, call in enumerate(calls, 1):
        for error, times in ways_to_fail(call, nth)[: 2 if kind == "debug" else None]:
            tried += bool(attempt(scenario, kind, nth=nth, times=times, error=error).fired)
    assert tried >= 2 * len(calls) or kind == "measured"  # whose calls go by the clock


@pytest.mark.filterwarnings("ignore:.*keeps its memory:ResourceWarning")
@pytest.mark.parametrize(("scenario", "kind"), [case for case in CASES if case[1] != "debug"], ids=name_of)
def test_a_lost_device_is_told_and_hangs_nothing(scenario, kind):
    """The error names the loss; blocks can be freed, questions asked, and the pool closed and dropped."""
    for nth in range(1, len(attempt(scenario, kind).calls) + 1, 4):
        attempt_on_a_lost_device(scenario, kind, nth)
    gc.collect()  # the pools, which warn


def test_what_cannot_be_raised_is_a_warning():
    """The last free of a closed pool, and a pool that is dropped: the block is free, the memory is kept."""
    caller = Caller("balanced")
    caller.open()
    pointer = caller.pool.malloc(1 << 20)
    caller.pool.close()
    caller.driver.faults.fail("synchronize", times=2)
    with pytest.warns(ResourceWarning, match=r"keeps its memory.*INJECTED.*close\(\) tries again"):
        caller.pool.free(pointer)
    assert not caller.pool.live_blocks()
    assert caller.pool.reserved_bytes > 0
    caller.pool = None
    with pytest.warns(ResourceWarning, match="keeps its memory"):
        gc.collect()  # a closed pool is in a cycle with its own table
    assert any(caller.driver.held().values())


def test_a_close_that_failed_can_be_repeated():
    caller = Caller("balanced")
    caller.open()
    pointer = caller.pool.malloc(1 << 20)
    caller.pool.close()
    caller.driver.faults.fail("unmap")
    with pytest.warns(ResourceWarning, match="keeps its memory"):
        caller.pool.free(pointer)
    caller.pool.close()
    assert not any(caller.driver.held().values())


def test_the_scenarios_reach_every_place_that_calls_the_driver():
    """A new call in the pool of one device needs a scenario that reaches it."""
    written = call_sites.in_source()
    reached = set()
    for scenario, kind in CASES:
        seen = attempt(scenario, kind)
        reached |= seen.places
        for nth in range(1, len(seen.calls) + 1) if kind == "measured" else ():
            reached |= attempt(scenario, kind, nth=nth).places  # it calls the driver when a call failed
    assert written - reached == set(), "no scenario in tests/reliability/kit/scenarios.py makes these calls"
    assert reached - written == set(), "these calls are made, and the search of the source misses them"
    assert len(written) >= 29
