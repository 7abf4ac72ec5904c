"""RMM's pool, as its rules are published.

Source: RMM 26.10, ``pool_memory_resource``, ``stream_ordered_memory_resource`` and
``coalescing_free_list``. The rules:

* sizes are rounded up to 256 bytes;
* the best fit among the free blocks of the stream serves, the lowest address among equals; the block is
  always split, and the rest stays with the stream;
* a block is freed to the stream on which it is freed, after an event was recorded there, and coalesced
  with the neighbors that are free on the same stream and from the same call to the upstream;
* when the stream has none, another stream's best fit serves: the stream waits for that one's event and
  takes all of its blocks over if that is what it takes;
* otherwise the pool grows by the larger of the request and its present size, so it doubles. When the
  upstream refuses, half of that is tried, down to the request. Nothing goes back to the upstream.

Checked against the peaks recorded on all nine traces, with no initial size: equal to the byte.
"""

from __future__ import annotations

from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.errors import DriverOutOfMemoryError
from smartpool.trace.baselines.base import CachingBaseline
from smartpool.trace.baselines.blocks import Block, FreeBlocks
from smartpool.units import align_up

__all__ = ["RmmPool"]

_GRAIN: Final = 256


class RmmPool(CachingBaseline):
    """`rmm.mr.PoolMemoryResource` over `rmm.mr.CudaMemoryResource`.

    Parameters
    ----------
    driver
        The memory.
    initial_bytes
        What the pool takes at once; RMM's own default is half of the free memory.
    """

    name = "rmm"
    grain = _GRAIN

    def __init__(self, driver: Driver, *, initial_bytes: int = 0) -> None:
        super().__init__(driver)
        self._events: dict[int, int] = {}  # in the order in which streams came
        if initial_bytes:
            home = self._home(0, stream=0)
            home.add(self._new_segment(align_up(initial_bytes, _GRAIN), home))

    def free(self, pointer: int, stream: int) -> None:
        """Take back what `malloc` returned: record the stream's event, then coalesce."""
        super().free(pointer, stream)
        self._driver.record_event(self._event(stream), self._handle(stream))

    def _home(self, size: int, stream: int) -> FreeBlocks:
        if stream not in self._free_on:
            self._event(stream)
        return super()._home(size, stream)

    def _freed_to(self, block: Block, stream: int) -> FreeBlocks:
        return self._home(block.size, stream)

    def _choose(self, home: FreeBlocks, size: int) -> Block | None:
        block = home.best(size)
        if block is not None or len(self._free_on) == 1:
            return block
        mine = next(number for number, free in self._free_on.items() if free is home)
        for number in self._others(mine):
            block = self._free_on[number].best(size)
            if block is not None:
                self._driver.wait_event(self._handle(mine), self._event(number))
                return block  # its rest stays with the other stream
        for number in self._others(mine):
            self._take_over(mine, number)
            block = home.best(size)
            if block is not None:
                return block
        return None

    def _others(self, mine: int) -> list[int]:
        """Return the other streams that have a list, in the order in which their events were made."""
        return [number for number in self._events if number != mine and number in self._free_on]

    def _take_over(self, mine: int, number: int) -> None:
        """Move all free blocks of one stream to another, which waits for it."""
        self._driver.wait_event(self._handle(mine), self._event(number))
        home = self._free_on[mine]
        other = self._free_on.pop(number)
        for block in sorted(other, key=lambda block: block.address):
            other.remove(block)
            self._add_free(block, home)

    def _event(self, stream: int) -> int:
        event = self._events.get(stream)
        if event is None:
            event = self._events[stream] = self._driver.create_event()
        return event

    def _grow(self, home: FreeBlocks, size: int) -> Block:
        wanted = max(size, self._reserved)
        while True:
            try:
                return self._new_segment(wanted, home)
            except DriverOutOfMemoryError as error:
                if wanted == size:
                    raise self._out_of_memory(size) from error
            wanted = max(size, wanted // 2)
