"""The pool of one device with everything attached: planned steps, graphs, telemetry, maintenance."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from smartpool.errors import CaptureError
from smartpool.graphs.captures import Graphs
from smartpool.graphs.found import serve_found
from smartpool.heap.arena import ALIGNMENT
from smartpool.maintenance.giving_back import Maintenance
from smartpool.pool.attachments import RequestFront
from smartpool.pool.device_pool import DevicePool
from smartpool.pool.ending import release_if_over
from smartpool.sleep.sleeping import Sleep
from smartpool.steps.stepping import Steps
from smartpool.telemetry.fragmentation import Fragmentation, fragmentation_of
from smartpool.telemetry.watched import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpool.config import SmartPoolConfig
    from smartpool.driver.protocol import Driver
    from smartpool.graphs.memory import GraphMemory
    from smartpool.telemetry.memory_map import MemoryMap
    from smartpool.telemetry.statistics import MemorySnapshot

__all__ = ["AdvancedMemoryPoolManager"]


class AdvancedMemoryPoolManager(DevicePool):
    """Memory of one device in four tiers. Thread-safe and stream-aware.

    Parameters
    ----------
    driver
        The device. The manager closes it when it is closed itself and nothing is live any more.
    config
        How the pool behaves.

    Attributes
    ----------
    steps, graphs, telemetry, maintenance, sleeping
        What is attached to the pool.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> with AdvancedMemoryPoolManager(open_driver("model:1GiB")) as manager:
    ...     pointer = manager.malloc(1000)
    ...     manager.free(pointer)
    ...     manager.malloc(1000) == pointer
    True
    """

    def __init__(self, driver: Driver, config: SmartPoolConfig | None = None) -> None:
        super().__init__(driver, config)
        pool = self.slow_path
        self.steps = Steps(enabled=pool.config.enable_predictive_allocation and pool.pooling)
        self.graphs = Graphs()
        pool.attached += [self.steps, self.graphs]
        pool.on_capture = partial(serve_found, self.graphs)
        self.telemetry = Telemetry(pool, self.steps)
        self.maintenance = Maintenance(pool, self.steps)
        self.sleeping = Sleep(pool, pool.config.sleep_tags)

    # ------------------------------------------------------------------ who is asked and told

    @property
    def out_of_memory_callbacks(self) -> list[Callable[[int], bool]]:
        """Asked in turn, with the bytes that are wanted, before a request fails for lack of memory.

        One that freed something returns True, and the request is tried again. They may free and
        trim, and must not allocate from this pool.
        """
        return self.slow_path.out_of_memory_callbacks

    @property
    def front(self) -> RequestFront | None:
        """What serves requests before they reach the pool: a framework's native code."""
        return self.slow_path.front

    @front.setter
    def front(self, front: RequestFront | None) -> None:
        with self.slow_path.section.lock:
            self.slow_path.front = front
            self.slow_path.look_again()

    # ------------------------------------------------------------------ planned steps

    def begin_step(self, name: str, *, wait_for_plan: bool = False) -> None:
        """Begin one repetition of the step `name` on this thread; see `SmartPool.step`."""
        pool = self.slow_path
        if wait_for_plan:
            self.steps.wait_for_plan(name)
        with self.working():
            if pool.capture is not None:
                raise CaptureError(
                    f"expected to begin step {name!r} outside of a capture; a graph has its memory planned "
                    "by itself"
                )
            if pool.closed:
                raise pool.closed_error()
            self.steps.begin(name, pool, self.telemetry.add_observer)

    def end_step(self) -> None:
        """End the repetition that is under way on this thread."""
        section = self.slow_path.section
        with section.lock:
            planning = self.steps.end(self.slow_path, self.telemetry.remove_observer)
            if not (section.entered or section.torn):  # else the next request does it: an end does not fail
                with self.working():
                    self.steps.sweep(self.slow_path)
        if planning is not None:
            planning.run()

    # ------------------------------------------------------------------ sleep

    @property
    def can_sleep(self) -> bool:
        """Whether memory of this pool can be placed apart, and sleep."""
        return bool(self.driver.granularity) and self.slow_path.pooling

    def malloc_apart(self, kind: str, nbytes: int, stream: object = None, alignment: int = 1) -> int:
        """Return the address of a block in chunks of what is of that kind; else as `malloc_aligned`."""
        return self.sleeping.request(kind, nbytes, stream, max(alignment, ALIGNMENT))

    # ------------------------------------------------------------------ graphs

    def begin_capture(self, memory: GraphMemory, stream: int | None = None) -> None:
        """Make ready for a capture that begins after this call; see `SmartPool.capture`.

        `stream` is the one that is captured, None when that is not known.
        """
        self.graphs.begin_capture(self.slow_path, memory, stream)

    def end_capture(self) -> None:
        """Go back to the ordinary ways: the capture is over, well or badly."""
        self.graphs.end_capture(self.slow_path)
        release_if_over(self.slow_path)

    def trim(self, keep_bytes: int = 0, *, wait: bool = False, captures: bool = False) -> int:
        """Give idle memory back to the device until at most `keep_bytes` are reserved; as `DevicePool.trim`.

        With `captures`, what is held for graphs that were captured outside of `SmartPool.capture` goes, too:
        they must not be launched any more.
        """
        before = self.reserved_bytes
        if captures and self.slow_path.capture is None:
            self.graphs.close_found()
        super().trim(keep_bytes, wait=wait)
        return before - self.reserved_bytes

    def close(self) -> None:
        """As `DevicePool.close`; with what graphs hold whose captures were not announced: nobody else can."""
        if not self.disowned:
            self.graphs.close_found()
        super().close()

    # ------------------------------------------------------------------ telemetry

    def fragmentation(self) -> Fragmentation:
        """Return the live metric by its three parts. O(live blocks + gaps)."""
        with self.working():
            return fragmentation_of(self.slow_path, self.slow_path.live_bytes)

    def snapshot(self) -> MemorySnapshot:
        """Return everything that is known about this device's memory now. O(live blocks + gaps)."""
        return self.telemetry.snapshot()

    def memory_map(self) -> MemoryMap:
        """Return what every byte that the pool holds is, by address. O(n log n)."""
        return self.telemetry.memory_map()
