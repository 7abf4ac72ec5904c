"""Memory that CUDA graphs of PyTorch have baked in.

Problem: a graph replays the addresses that its kernels were captured with. So memory that was
requested while a stream was captured must stay the graph's until the graph is gone, however
often its tensors are freed. And while a capture is under way, most of what a pool does beside it
ruins it: asking an event, waiting for an event of uncaptured work, recording one in the captured
stream and asking it later.
Method: PyTorch tells when a capture begins, ends, and when its graph is gone, with the id of the
graph's memory. Before a capture the device is waited for and the bins are emptied: every gap is
then idle, and no gap asks for a wait. Requests of a captured stream are served from the pool once,
with this thread's capture mode relaxed, and from then on are the graph's: freed, they go to the
graph's own lists, for later requests of the same size and stream. Other frees are held back to
the end of the capture. When the graph is gone the device is waited for, what is free of the
graph's memory goes back to the pool, and what is live becomes ordinary.
Bound: two dictionary look-ups for each request inside a capture, one for each free while graphs live.
What it cannot do: memory of the same pool that other frameworks take or free during a capture goes
by the pool's ordinary ways, and may ruin the capture.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smartpool.interop._frameworks import cuda_managers
from smartpool.memory.arena import ALIGNMENT
from smartpool.units import align_up

if TYPE_CHECKING:
    from smartpool.pool.manager import AdvancedMemoryPoolManager
    from smartpool.smart_pool import SmartPool

__all__ = ["GraphMemory", "Graphs"]

MemoryId = tuple[int, int, int]  # device number, and the two halves of PyTorch's id


@dataclass(slots=True)
class GraphMemory:
    """What the graphs that share one id hold on one device.

    Attributes
    ----------
    users
        Graphs, and captures under way, that use it.
    blocks
        Address to size and stream, for every block, live or free.
    free
        Addresses by size and stream.
    """

    manager: AdvancedMemoryPoolManager
    users: int = 0
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    free: dict[tuple[int, int], list[int]] = field(default_factory=dict)


class Graphs:
    """The graphs of one process over one pool.

    Attributes
    ----------
    captures
        Captures under way: device number to the memory that they fill.
    private
        Address to the graph memory that it belongs to.
    held_back
        Addresses freed during a capture, by device number.
    """

    def __init__(self, pool: SmartPool) -> None:
        self._pool = pool
        self._managers = cuda_managers(pool)
        self._memories: dict[MemoryId, GraphMemory] = {}
        self.captures: dict[int, GraphMemory] = {}
        self.private: dict[int, GraphMemory] = {}
        self.held_back: dict[int, list[int]] = {}
        self._lock = threading.RLock()
        self._background_ran = False

    # ------------------------------------------------------------------ what PyTorch says

    def begin(self, device: int, first: int, second: int, _filter: object = None) -> None:
        """Learn that a capture is about to begin on `device`."""
        manager = self._managers[device]
        with self._lock:
            if not self.captures:
                self._background_ran = self._pool.background.running
                self._pool.background.stop()  # its thread would ask events
            manager.driver.synchronize()
            manager.flush()
            memory = self._memories.setdefault((device, first, second), GraphMemory(manager))
            memory.users += 1
            self.held_back.setdefault(device, [])
            self.captures[device] = memory

    def end(self, device: int, first: int, second: int) -> None:  # noqa: ARG002 - PyTorch's signature
        """Learn that the capture ended, well or badly."""
        with self._lock:
            memory = self.captures.pop(device, None)
            if memory is None:
                return
            for pointer in self.held_back.pop(device, []):
                memory.manager.free(pointer)
            if not self.captures and self._background_ran:
                self._pool.background.start()

    def release(self, device: int, first: int, second: int) -> None:
        """Learn that one user of a memory is gone; with the last its free blocks become ordinary."""
        with self._lock:
            memory = self._memories.get((device, first, second))
            if memory is None:
                return
            memory.users -= 1
            if memory.users > 0:
                return
            del self._memories[device, first, second]
            with memory.manager.driver.beside_capture():
                memory.manager.driver.synchronize()
            for pointer in memory.blocks:
                self.private.pop(pointer, None)
            for pointers in memory.free.values():
                for pointer in pointers:
                    self._give(memory.manager, device, pointer)

    # ------------------------------------------------------------------ requests during a capture

    def allocate(self, size: int, device: int, stream: int | None) -> int:
        """Serve a request while a capture is under way on `device`."""
        with self._lock:
            memory = self.captures.get(device)
            manager = self._managers[device]
            with manager.driver.beside_capture():
                # The legacy stream (0) is never captured, and asking about it would ruin the capture.
                if memory is None or not stream or not manager.driver.is_capturing(stream):
                    return manager.malloc(size, stream)
                block = align_up(size, ALIGNMENT), stream
                spare = memory.free.get(block)
                if spare:
                    return spare.pop()
                pointer = manager.malloc(size, stream)
            memory.blocks[pointer] = block
            self.private[pointer] = memory
            return pointer

    def free(self, pointer: int, device: int) -> bool:
        """Take a freed block in, if it is a graph's or a capture is under way; False otherwise."""
        with self._lock:
            memory = self.private.get(pointer)
            if memory is not None:
                memory.free.setdefault(memory.blocks[pointer], []).append(pointer)
                return True
            held_back = self.held_back.get(device)
            if held_back is None:
                return False
            held_back.append(pointer)
            return True

    # ------------------------------------------------------------------ what is held

    def held_bytes(self, device: int) -> int:
        """Return the bytes of blocks that graphs hold on `device`, live or free."""
        with self._lock:
            return sum(
                size
                for (number, _, _), memory in self._memories.items()
                if number == device
                for size, _ in memory.blocks.values()
            )

    def _give(self, manager: AdvancedMemoryPoolManager, device: int, pointer: int) -> None:
        held_back = self.held_back.get(device)
        if held_back is None:
            manager.free(pointer)
        else:  # another capture is under way
            held_back.append(pointer)
