"""CUDA graphs of PyTorch: whose memory is whose, by the ids that PyTorch gives.

PyTorch tells when a capture begins, when it ends, and when one of its graphs is gone, with the id of
the graph's memory; several graphs may share one. What a pool does beside a capture is
`smartpool.graphs`; here is only which memory is meant, and when its last user is gone.

PyTorch does not say which stream is captured, so each request's stream is asked about.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from smartpool.forks import renewed
from smartpool.graphs.memory import GraphMemory, HeldMemory
from smartpool.interop._frameworks import cuda_managers

if TYPE_CHECKING:
    from smartpool.smart_pool import SmartPool

__all__ = ["Graphs"]

MemoryId = tuple[int, int, int]  # device number, and the two halves of PyTorch's id


class Graphs:
    """The graphs of one process over one pool.

    Parameters
    ----------
    pool
        On CUDA devices.
    """

    def __init__(self, pool: SmartPool) -> None:
        self._managers = cuda_managers(pool)
        self._memories: dict[MemoryId, GraphMemory] = {}
        self._users: dict[MemoryId, int] = {}  # graphs, and captures under way
        self._capturing: set[int] = set()  # devices
        # Never held while a pool is called: PyTorch drops a graph in the middle of any request.
        self._lock = renewed(self, "_lock", threading.RLock)
        self._finalizing = sys.is_finalizing  # bound: modules are empty when PyTorch drops its last graphs

    def begin(self, device: int, first: int, second: int, _filter: object = None) -> None:
        """Learn that a capture is about to begin on `device`."""
        manager, key = self._managers[device], (device, first, second)
        with self._lock:
            memory = self._memories.setdefault(key, GraphMemory(manager))
            self._users[key] = self._users.get(key, 0) + 1
        manager.begin_capture(memory)
        self._capturing.add(device)

    def end(self, device: int, first: int, second: int) -> None:  # noqa: ARG002 - PyTorch's signature
        """Learn that the capture ended, well or badly."""
        try:
            self._capturing.remove(device)
        except KeyError:  # none is under way
            return
        self._managers[device].end_capture()

    def release(self, device: int, first: int, second: int) -> None:
        """Learn that one user of a memory is gone; with the last its free blocks become ordinary."""
        if self._finalizing():
            return  # the end of the process gives all back
        key = device, first, second
        with self._lock:
            if key not in self._users:
                return
            self._users[key] -= 1
            if self._users[key]:
                return
            del self._users[key]
            memory = self._memories.pop(key)
        memory.close()

    @property
    def capturing(self) -> bool:
        """Whether a capture is under way on some device."""
        return bool(self._capturing)

    def held_bytes(self, device: int) -> int:
        """Return the bytes that graphs hold on `device`, live or free, whoever captured them."""
        return sum(memory.held_bytes for memory in self._memories_on(device))

    def holds(self, pointer: int) -> bool:
        """Return whether an address is in the memory of a graph."""
        return any(memory.holds(pointer) for each in self._managers for memory in self._memories_on(each))

    def _memories_on(self, device: int) -> list[HeldMemory]:
        manager = self._managers.get(device)
        found = manager.graphs.found.copy() if manager else {}
        told = [memory for key, memory in self._memories.copy().items() if key[0] == device]
        return [*told, *found.values()]
