"""What callers do, so that together every place of the pool that calls the driver is reached."""

from types import SimpleNamespace

import pytest

from smartpool.errors import OutOfMemoryError
from smartpool.graphs.memory import GraphMemory
from smartpool.heap import stream_order as stream_clock
from smartpool.units import KiB, MiB

STAMPED = 64  # the bytes at either end of a block that the caller looks at again


def stitching(caller):
    blocks = [caller.malloc(4 * MiB) for _ in range(6)]
    for block in blocks[::2]:
        caller.free(block)
    caller.may_fail(10 * MiB)
    caller.malloc(1000)
    caller.pool.trim()


def windows_one_after_the_other(caller):
    for _ in range(2):
        blocks = [caller.malloc(3 * MiB + 512) for _ in range(8)]
        for block in blocks[::2]:
            caller.free(block)
        window = caller.may_fail(7 * MiB)
        if window:
            caller.free(window)
        for block in blocks[1::2]:
            caller.free(block)
    caller.pool.trim(wait=True)


def streams(caller):
    block = caller.malloc(20 * MiB, caller.stream)
    caller.driver.hold(caller.stream)
    caller.driver.fill(block + STAMPED, 1, MiB, caller.stream)
    caller.free(block)
    block = caller.malloc(20 * MiB)
    caller.driver.go_on()
    caller.pool.record_stream(block, caller.stream)
    caller.free(block)
    caller.pool.flush()
    caller.pool.order_after(caller.malloc(24 * MiB, caller.stream), 0)
    caller.pool.trim(wait=True)


def many_pending_events(caller):
    """More flushes than events are kept for, while the device does not get on."""
    other = caller.driver.create_stream()
    block = caller.malloc(4 * MiB, other)
    caller.driver.hold(other)
    caller.driver.fill(block + STAMPED, 1, MiB, other)
    for _ in range(stream_clock.PENDING + 2):
        caller.free(caller.malloc(2 * MiB, other))
        caller.pool.flush()
    caller.free(block)
    caller.pool.trim()
    caller.driver.go_on()
    caller.pool.trim(wait=True)


def a_stream_that_is_destroyed(caller):
    other = caller.driver.create_stream()
    block = caller.malloc(3 * MiB, other)
    caller.free(block)
    caller.driver.destroy_stream(other)
    caller.malloc(3 * MiB)
    caller.pool.trim(wait=True)


def alignments(caller):
    blocks = [caller.malloc(3 * MiB + 5, alignment=1 << shift) for shift in (12, 20, 22)]
    for block in blocks:
        caller.free(block)
    caller.malloc(28 * MiB)


def out_of_memory(caller):
    caller.malloc(20 * MiB)
    with pytest.raises(OutOfMemoryError):
        caller.malloc(20 * MiB)
    caller.malloc(12 * MiB)


def planned_steps(caller):
    for _ in range(3):
        caller.pool.begin_step("step", wait_for_plan=True)
        try:
            first, second = caller.malloc(3 * MiB), caller.malloc(5 * MiB)
            caller.pool.record_stream(second, caller.stream)
            caller.free(first)
            caller.free(second)
        finally:
            caller.pool.end_step()
    caller.pool.trim()


def a_step_that_is_left(caller):
    """In the middle, for a request that finds no room beside it; part of it is live, in a window."""
    keep = [caller.malloc(size * MiB) for size in (4, 2, 4, 2, 4, 2, 4)]
    for block in keep[::2]:
        caller.free(block)
    for repetition in range(2):
        caller.pool.begin_step("step", wait_for_plan=True)
        try:
            first, second = caller.may_fail(7 * MiB), caller.may_fail(6 * MiB)
            if first and second:
                caller.pool.record_stream(first, caller.stream)
                caller.free(first)
                if repetition:
                    if third := caller.may_fail(10 * MiB):  # segments hold it in pieces
                        caller.free(third)
                    caller.pool.trim(wait=True)
                caller.free(second)
        finally:
            caller.pool.end_step()
    caller.pool.trim(wait=True)


def small_and_large(caller):
    blocks = [caller.malloc(step * 700) for step in range(20)]
    for block in blocks[::2]:
        caller.free(block)
    caller.may_fail(29 * MiB)


def slabs_come_and_go(caller):
    for _ in range(2):
        blocks = [caller.malloc(60 * KiB) for _ in range(80)]
        for block in blocks:
            caller.free(block)
        caller.free(caller.malloc(31 * MiB))


def buffers(caller):
    """Buffers are freed, on another stream too, dropped, and exported."""
    caller.buffer(3 * MiB).free()
    caller.buffer(2 * MiB).free(caller.stream)
    caller.buffer(60 * KiB, caller.stream)
    del caller.buffers[-1]
    caller.buffer(1000)
    if not caller.readable:  # then nobody could read an export
        return
    for _ in range(2):
        caller.consumers.append(caller.buffers[-1].__dlpack__())
    caller.buffers[-1].free(caller.stream)
    caller.consumers.clear()


def copies(caller):
    """Consumers get copies, on the device and on the host."""
    for asked in ({"copy": True}, {"dl_device": (1, 0)}):
        caller.consumers.append(caller.buffer(1000).__dlpack__(max_version=(1, 0), **asked))


def capturing(caller):
    """A graph bakes its memory in, and gives it back."""
    caller.free(caller.malloc(3 * MiB))
    memory = GraphMemory(caller.pool)
    caller.memories.append(memory)
    caller.pool.begin_capture(memory, caller.stream)
    try:
        inside, beside = caller.malloc(4 * MiB, caller.stream), caller.malloc(2 * MiB)
        caller.free(inside)
        caller.free(beside)
    finally:
        caller.pool.end_capture()
    memory.close()


def closed_beside_a_capture(caller):
    """The device is waited for when nothing captures any more."""
    graph, other = GraphMemory(caller.pool), GraphMemory(caller.pool)
    caller.memories += [graph, other]
    caller.pool.begin_capture(graph, caller.stream)
    try:
        caller.free(caller.malloc(4 * MiB, caller.stream))
    finally:
        caller.pool.end_capture()
    caller.pool.begin_capture(other, caller.stream)
    try:
        graph.close()
    finally:
        caller.pool.end_capture()
    caller.pool.flush()
    other.close()


def broken_off(caller):
    """A call ends in the middle for a reason that is not ours: the next one mends the books first."""
    blocks = [caller.malloc(3 * MiB + 512) for _ in range(8)]
    for block in blocks[::2]:
        caller.free(block)
    windows = [caller.may_fail(5 * MiB), caller.may_fail(4 * MiB)]
    if windows[0]:
        caller.free(windows[0])
    caller.pool.slow_path.front = SimpleNamespace(drain=_break_off, switch=_break_off)
    with pytest.raises(ZeroDivisionError):
        caller.pool.flush()
    caller.pool.slow_path.front = None
    caller.malloc(2 * MiB)


def _break_off(**_):
    raise ZeroDivisionError


def questions(caller):
    caller.malloc(3 * MiB)
    caller.free(caller.malloc(1000))
    caller.pool.snapshot()
    caller.pool.fragmentation()
    assert caller.pool.available_bytes > 0


def closing(caller):
    """Close with a window, and with memory that the device may still touch."""
    busy = caller.malloc(5 * MiB, caller.stream)
    blocks = [caller.malloc(4 * MiB) for _ in range(6)]
    for block in blocks[::2]:
        caller.free(block)
    caller.may_fail(10 * MiB)
    caller.driver.hold(caller.stream)
    caller.driver.fill(busy + STAMPED, 1, MiB, caller.stream)
    for block in list(caller.live):
        caller.free(block)
    caller.pool.close()


def closing_before_the_last_free(caller):
    block = caller.malloc(3 * MiB)
    caller.malloc(1000)
    caller.pool.close()
    caller.free(block)


def sleeping(caller):
    """All of it, a window too, goes back to the device and comes again."""
    if not caller.elastic:
        return
    blocks = [caller.malloc(4 * MiB) for _ in range(6)]
    for block in blocks[::2]:
        caller.free(block)
    caller.malloc(10 * MiB)
    caller.pool.sleeping.sleep()
    caller.pool.sleeping.wake()


SCENARIOS = [
    stitching,
    windows_one_after_the_other,
    streams,
    many_pending_events,
    a_stream_that_is_destroyed,
    alignments,
    out_of_memory,
    planned_steps,
    a_step_that_is_left,
    small_and_large,
    slabs_come_and_go,
    broken_off,
    buffers,
    copies,
    capturing,
    closed_beside_a_capture,
    questions,
    sleeping,
    closing,
    closing_before_the_last_free,
]
NEED_A_HEAP = (
    many_pending_events, planned_steps, a_step_that_is_left, slabs_come_and_go, capturing,
    closed_beside_a_capture,
)  # fmt: skip
"""Scenarios that mean nothing where every request goes to the driver."""
READ = (copies,)
"""Scenarios that read memory, which a model has none of."""
