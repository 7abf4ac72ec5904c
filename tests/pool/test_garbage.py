"""Garbage that holds memory is collected before a request fails, where that is safe."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace

import pytest

from smartpool import MiB, OutOfMemoryError, RequestTooLargeError, SmartPool, SmartPoolConfig
from smartpool.pool.garbage import uncollected

pytestmark = pytest.mark.usefixtures("no_collector")

SETTINGS = [{}, {"enable_advanced_pooling": False}, {"track": True}, {"debug": True}]


class Garbage:
    """Something in a cycle, which only the collector ends."""

    def __init__(self, held):
        self.held, self.cycle = held, self


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    "request_",
    [
        lambda pool: pool.allocate(20 * MiB),
        lambda pool: pool.empty((20, MiB), "uint8"),
        lambda pool: pool.empty((20, MiB), "uint8", alignment=4096),
        lambda pool: pool.allocate(20 * MiB, pool.managers[0].driver.create_stream()),
    ],
)
def test_a_program_that_holds_nothing_never_fails(settings, request_):
    with SmartPool("model:128MiB", SmartPoolConfig(**settings)) as pool:
        for _ in range(20):
            Garbage(request_(pool))
        assert pool.statistics.devices[0].out_of_memory_errors == 0
        gc.collect()
        pool.check()


def test_the_error_says_how_much_was_garbage():
    with SmartPool("model:64MiB") as pool:
        held = pool.malloc(40 * MiB)
        Garbage(pool.allocate(3 * MiB))
        with pytest.raises(OutOfMemoryError, match="collecting garbage freed 3 MiB before") as caught:
            pool.malloc(30 * MiB)
        report = caught.value.report
        assert (report.collected_bytes, report.live_bytes) == (3 * MiB, 40 * MiB)
        assert "3 MiB, collected before" in report.text()
        with pytest.raises(OutOfMemoryError, match="collecting garbage freed 0 B before"):
            pool.malloc(30 * MiB)
        assert pool.statistics.devices[0].out_of_memory_errors == 2
        pool.free(held)


def test_one_failure_is_told_once(caplog):
    with SmartPool("model:64MiB") as pool:
        told, asked = [], []
        pool.hooks.on_out_of_memory(told.append)
        pool.add_out_of_memory_callback(asked.append)
        held = pool.malloc(40 * MiB)
        with pytest.raises(OutOfMemoryError) as caught:
            pool.malloc(30 * MiB)
        assert len(told) == len(caplog.records) == 1
        assert caught.value.__context__ is not caught.value
        assert "GarbageMayHelp" not in "".join(map(repr, _chain(caught.value)))
        assert asked
        pool.free(held)


def _chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_what_can_never_be_had_collects_nothing():
    with SmartPool("model:64MiB") as pool:
        Garbage(pool.allocate(3 * MiB))
        with pytest.raises(RequestTooLargeError) as caught:
            pool.malloc(65 * MiB)
        assert caught.value.report.collected_bytes is None
        assert pool.managers[0].live_bytes == 3 * MiB
        gc.collect()


def test_destructors_run_without_the_pools_lock():
    """One that waits for a thread that waits for the pool would never end."""
    with SmartPool("model:64MiB") as pool:
        came = []

        class Waits(Garbage):
            def __del__(self):
                other = threading.Thread(target=lambda: came.append(pool.malloc(100)))
                other.start()
                other.join(60)

        Waits(pool.allocate(40 * MiB))
        held = pool.allocate(30 * MiB)
        assert held.nbytes == 30 * MiB
        assert came
        pool.free(came[0])


def test_a_destructor_that_requests_itself():
    with SmartPool("model:64MiB") as pool:
        got = []

        class Requests(Garbage):
            def __del__(self):
                got.append(pool.malloc(20 * MiB))
                with pytest.raises(OutOfMemoryError):  # the collector does not come by in its own middle
                    pool.malloc(60 * MiB)

        Requests(pool.allocate(40 * MiB))
        held = pool.allocate(30 * MiB)
        assert len(got) == 1
        pool.free(got[0])
        del held
        pool.check()


def test_beside_a_capture_nothing_is_collected():
    with SmartPool("model:64MiB") as pool:
        stream = pool.managers[0].driver.create_stream()
        Garbage(pool.allocate(40 * MiB))
        with pool.capture(stream) as memory, pytest.raises(OutOfMemoryError) as caught:
            pool.malloc(30 * MiB)
        assert caught.value.report.collected_bytes is None
        memory.close()
        with uncollected(), pytest.raises(OutOfMemoryError):
            pool.malloc(30 * MiB)
        pool.free(pool.malloc(30 * MiB))


def test_an_interrupt_while_it_collects_comes_out_as_itself():
    class StopError(BaseException):
        pass

    with SmartPool("model:64MiB") as pool:
        manager = pool.managers[0]
        held = pool.malloc(40 * MiB)

        def stop(**_):
            if (
                manager.slow_path.section.lock._is_owned()
                and manager.slow_path.collected is not None
                and collecting
            ):
                raise StopError

        collecting = []
        gc.callbacks.append(lambda phase, _: collecting.append(phase) if phase == "stop" else None)
        manager.slow_path.front = SimpleNamespace(drain=stop)
        try:
            with pytest.raises(StopError):
                pool.malloc(30 * MiB)
        finally:
            gc.callbacks.pop()
            manager.slow_path.front = None
        assert manager.slow_path.collected == {}
        pool.free(held)
        pool.free(pool.malloc(50 * MiB))
        pool.check()


def test_callbacks_are_asked_once_and_behind_the_collector():
    asked = []
    with SmartPool("model:64MiB") as pool:
        pool.add_out_of_memory_callback(lambda nbytes: asked.append((nbytes, pool.managers[0].live_bytes)))
        kept = pool.allocate(40 * MiB)
        Garbage(pool.allocate(4 * MiB))
        with pytest.raises(OutOfMemoryError) as caught:
            pool.allocate(30 * MiB)
        assert asked == [(30 * MiB, 40 * MiB)]
        assert caught.value.report.collected_bytes == 4 * MiB
        kept.free()
