"""An exception at a chosen line of the pool, and the proof of what is promised then.

A trace function raises it. On the line of a `with` that is being left, or of a `finally`, a trace
function can raise where a signal cannot (the interpreter looks for signals when a function begins,
behind calls, and where loops go back): the lock and the mark of who holds it are put right by hand.
"""

import sys
import threading
from contextlib import suppress
from itertools import pairwise

from attack import CAPACITY, Caller, in_destructors
from rooms import POOL

from smartpool.debug.debugging import DebuggingManager
from smartpool.errors import OutOfMemoryError, StepError
from smartpool.heap.elastic import ElasticHeap
from smartpool.pool.direct import DirectBin
from smartpool.units import KiB, MiB

TRACED = tuple(f"/smartpool/{part}" for part in (*POOL, "containers/", "dlpack/", "buffer.py", "owner.py"))
PROBES = (1000, 3 * MiB, 5 * MiB, 60 * KiB, MiB, 7 * MiB, 2 * MiB, 1000, 512 * KiB, 4 * MiB)


def lines_of(scenario, kind):
    """Return the lines that a scenario runs, in order, as (file, line)."""
    lines = []
    caller = Caller(kind)
    caller.open()
    _traced(lambda: scenario(caller), lambda frame: lines.append(_place(frame)))
    return lines


def break_off(scenario, kind, nth, error):
    """Run a scenario with `error` raised at the nth line, and look at what is left.

    On a thread of its own: where a trace function raises on the last line of an `except`, CPython 3.11 goes
    on handling that exception for ever, and every later one on the thread would have it as its context.
    """
    failures = []

    def attempt():
        try:
            _break_off(scenario, kind, nth, error)
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


def _break_off(scenario, kind, nth, error):
    caller = Caller(kind)
    caller.open()
    count = 0

    def at_line(_frame):
        nonlocal count
        count += 1
        if count == nth + 1:
            sys.settrace(None)
            raise error

    caught = None
    with in_destructors() as swallowed:
        try:
            _traced(lambda: scenario(caller), at_line)
        except BaseException as raised:  # noqa: BLE001 - whatever comes is to be the error itself
            caught = raised
    if count <= nth:
        return  # threads that plan or close make it a line more or less
    assert (caught, swallowed) in [(error, []), (None, [error])]
    error.__traceback__ = None  # it holds the frames, and what was being made in them
    _put_right(caller.pool)
    caller.driver.go_on()
    if isinstance(caller.pool, DebuggingManager):
        _must_go_on(caller)
    else:
        _must_hold_what_is_promised(caller)


def _traced(run, at_line):
    def trace(frame, event, _argument):
        if not any(part in frame.f_code.co_filename.replace("\\", "/") for part in TRACED):
            return None
        if event == "line":
            at_line(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)


def _place(frame):
    return frame.f_code.co_filename.rpartition("/smartpool/")[2], frame.f_lineno


def _put_right(pool):
    while pool.slow_path.section.lock._is_owned():
        pool.slow_path.section.lock.release()
    if pool.slow_path.section.entered:
        pool.slow_path.section.entered, pool.slow_path.section.torn = False, True


def _must_go_on(caller):
    """Find debug mode at work as before: no later call fails for it, and the quarantine is what it says."""
    pool = caller.pool
    pool.__dict__["_worker"] = 0  # in a `finally`, as above
    caller.must_own_its_buffers()
    for _ in range(3):
        blocks = [pool.malloc(nbytes) for nbytes in PROBES[:3]]
        assert len(set(blocks)) == 3
        for block in blocks:
            pool.free(block)
    assert not pool._pending
    assert pool._quarantined_bytes == sum(block.size for block in pool._quarantine.values())
    pool.trim()
    assert pool._quarantined_bytes == len(pool._quarantine) == 0
    assert len(pool.slow_path.live) <= 1, "more was lost than one block"
    pool.disown()  # it would wait for that one, and say so


def _must_hold_what_is_promised(caller):
    pool, driver = caller.pool, caller.driver
    pool.slow_path.front = None
    if pool.capturing:
        pool.end_capture()
    for memory in caller.memories:
        memory.close()
    if not pool.closed and pool.sleeping.asleep():
        pool.sleeping.wake()
    with suppress(StepError):
        pool.end_step()
    caller.must_own_its_buffers()
    if pool.closed:
        _must_close(caller)
        return
    live = set(pool.live_blocks())
    strays = _strays(caller)
    assert live >= caller.live.keys(), "a block of the caller is not live any more"
    got = _probe(caller)
    assert got or strays or sum(caller.live.values()) > CAPACITY // 2
    pool.flush()
    pool.slow_path.heap.check()
    driver.check()
    lost = _blocks_nobody_knows(pool)
    extra = live - caller.live.keys()
    assert len(lost) + len(extra) + strays <= 1, "more was lost than one block, or one thing of the driver's"
    for pointer in [*caller.live, *got, *extra]:
        if pointer in caller.live:
            caller.look(pointer)
        pool.free(pointer)
    pool.trim(wait=True)
    if lost or pool.steps.regions():  # the block may be one of a planned step's
        pool.disown()  # it would wait for the block, and say so
        return
    assert pool.reserved_bytes == 0
    pool.close()
    assert strays or not any(driver.held().values()), driver.held()


def _probe(caller):
    """Ask for blocks of all sorts: none may lie where another is, and nothing but memory may be missing."""
    taken = sorted((pointer, pointer + nbytes) for pointer, nbytes in caller.live.items())
    got = []
    for nbytes in PROBES:
        try:
            pointer = caller.pool.malloc(nbytes)
        except OutOfMemoryError:
            continue
        taken.append((pointer, pointer + nbytes))
        got.append(pointer)
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(taken)), "blocks overlap"
    return got


def _blocks_nobody_knows(pool):
    known = set(pool.live_blocks()) | {pointer for bin_ in pool.slow_path.every_bin() for pointer in bin_}
    known |= {address for address, _ in pool.steps.regions()}
    raw = {bin_.segment for bin_ in pool.slow_path.live.values() if isinstance(bin_, DirectBin)}
    raw |= {segment for segment, _ in pool.slow_path.pending.frees}
    if pool.slow_path.pooling:
        raw |= pool.slow_path.memory._segments.keys()  # the heap's
    lost = [tuple(block) for block in pool.slow_path.heap.blocks() if block.start not in known]
    return lost + [segment for segment in pool.slow_path.memory._segments.items() if segment[0] not in raw]


def _strays(caller):
    """Return how many things the driver handed out that the pool has not heard of."""
    heap, memory, held = caller.pool.slow_path.heap, caller.pool.slow_path.memory, caller.driver.held()
    books = (heap._chunks, heap.windows.aliases) if isinstance(heap, ElasticHeap) else ()
    chunks = len(books[0]) if books else 0
    known = (chunks, len(memory._segments), sum(len(book._reservations) for book in books))
    return sum((held["chunks"], held["raw"], held["reservations"])) - sum(known)


def _must_close(caller):
    """End a close, or the free that ends a closed pool, which was broken off."""
    pool = caller.pool
    strays = _strays(caller)
    for pointer in list(caller.live):
        if pool.owns(pointer):
            pool.free(pointer)
    if _blocks_nobody_knows(pool):
        pool.disown()
        return
    pool.close()
    assert strays or not any(caller.driver.held().values()), caller.driver.held()
