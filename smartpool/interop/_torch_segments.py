"""A `torch.cuda.MemPool` over a pool of ours that gives idle segments back while it is alive.

Problem: PyTorch's own allocator cuts segments of ours into tensors, and keeps the idle ones of a `MemPool`
until that dies: neither `torch.cuda.empty_cache` nor a request for more than what idles makes it let go. It
does let go of pools that nobody uses any more, at the next `empty_cache`.
Method: the pool that the program holds stands for a pool of PyTorch's that can be replaced. `empty_cache`
first retires it, where nobody is inside of ``with use_mem_pool``, and the next use begins a new one: what
is live in the old one stays there, what idles goes. A request that our pool refuses asks PyTorch to let
go of retired pools; when that is not enough, the pool that it is for is retired under it. PyTorch holds a
lock meanwhile that its thread may take again, and expects all to change in the middle of such a request.
A small block of the retired pool, an *anchor*, keeps PyTorch from deleting the pool while the request is on
its way. It is let go when the program next enters or leaves the pool.
Bound: a retired pool costs some 200 bytes for good, since PyTorch takes the end of its object for the end
of a use. Nested uses, uses on several threads and graphs that share the pool keep it from being replaced
under a request; then PyTorch raises its own error, as ever.
Rejected: waiting for PyTorch (its `MemPool` works so on purpose); unmapping segments that idle (PyTorch
hands them out again without a word); its `max_split_size`, which is the whole process's.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from smartpool.forks import ModuleLock, held_if_free
from smartpool.interop._frameworks import keep_for_good
from smartpool.interop._torch_callbacks import AllocateFunction, FreeFunction, address_of
from smartpool.interop._torch_rescue import raise_later
from smartpool.pool.garbage import uncollected

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["Segments", "mem_pool_over"]

_EMPTIERS: Final = ("_cuda_emptyCache", "_accelerator_emptyCache")
_emptying: Final = ModuleLock(threading.Lock)
_alive: weakref.WeakSet[Segments] = weakref.WeakSet()


class Segments:
    """The pools of PyTorch's that one `MemPool` of ours stands for, one after the other.

    Parameters
    ----------
    torch
        PyTorch.
    managers
        The pool's managers by device number.
    make_allocator
        PyTorch's maker of allocators.
    options
        Of `torch.cuda.MemPool`.
    """

    def __init__(
        self,
        torch: Any,
        managers: dict[int, AdvancedMemoryPoolManager],
        make_allocator: Callable[[int, int], Any],
        options: dict[str, Any],
    ) -> None:
        self._torch = torch
        self._managers = managers
        self._options = options
        self._generation = 0
        self._given: dict[int, int] = {}  # address of a segment -> generation of the pool it was for
        self._segments_of: Counter[int] = Counter()  # generation -> segments
        self._anchors: list[int] = []
        self._reserved: dict[int, tuple[int, int]] = {}  # of an anchor, without memory: device, size
        self._swapping = False
        self._asking = threading.local()  # the device of a request of this thread's
        self._allocator = make_allocator(
            address_of(AllocateFunction, self._allocate), address_of(FreeFunction, self._free_function())
        )
        self._current: Any = None
        self._device = -1
        self._empty = _hook(torch)
        self.renew()
        if not options.get("use_on_oom"):  # else PyTorch looks for idle blocks in it by its name
            _alive.add(self)
            for manager in managers.values():
                manager.out_of_memory_callbacks.append(self._make_room)

    # ------------------------------------------------------------------ which pool it is now

    @property
    def current(self) -> Any:
        """The pool of PyTorch's that is in use, a new one if the last was retired."""
        while self._anchors:
            self._torch.cuda.caching_allocator_delete(self._anchors.pop())
        if self._current is None:
            self.renew()
        return self._current

    def renew(self) -> None:
        """Begin a new pool."""
        self._current = self._torch.cuda.MemPool(self._allocator, **self._options)
        self._device = self._torch.cuda.current_device()
        self._generation += 1

    def close(self) -> None:
        """Let PyTorch have the end of the pool."""
        if self in _alive:
            _alive.discard(self)
            for manager in self._managers.values():
                manager.out_of_memory_callbacks.remove(self._make_room)
        self._current = None

    def retire(self) -> None:
        """Give the pool up, where it has segments and nobody is inside: PyTorch may let go of what idles."""
        old = self._current
        if old is None or not self._segments_of[self._generation] or old.use_count() != 1:
            return
        self._current = None
        keep_for_good(old)
        self._torch._C._cuda_releasePool(self._device, old.id)  # noqa: SLF001 - no public way

    def _replace(self) -> bool:
        """Retire the pool in the middle of a request that is for it; whether that could be done."""
        old, core, cuda = self._current, self._torch._C, self._torch.cuda  # noqa: SLF001 - no public way
        if old is None or self._swapping or self not in _alive or old.use_count() != 2:
            return False
        begin, end, release = (
            getattr(core, f"_cuda_{name}")
            for name in ("beginAllocateCurrentThreadToPool", "endAllocateToPool", "releasePool")
        )
        device, self._swapping = self._device, True
        try:
            self._anchors.append(cuda.caching_allocator_alloc(1, device))
        finally:
            self._swapping = False
        new = cuda.MemPool(self._allocator, **self._options)
        keep_for_good(new)  # until it is in use: PyTorch ends a pool only where nobody is inside of any
        end(device, old.id)
        begin(device, new.id)
        self._current = new
        self._generation += 1
        keep_for_good(old)
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(new))
        release(device, old.id)  # the use of whoever is inside, who leaves the new one
        release(device, old.id)  # ours
        return True

    def _make_room(self, _nbytes: int) -> bool:
        """Let PyTorch give back what idles; whether it did. A callback of the pool's."""
        if getattr(self._asking, "device", None) is None:
            return False  # not a request of this pool
        with held_if_free(_emptying.lock) as mine:
            try:
                return mine and self._emptied()  # else another thread is at it, and may wait for this one
            except RuntimeError:  # PyTorch's: it would not
                return False

    def _emptied(self) -> bool:
        manager = self._managers[self._asking.device]
        before = manager.live_bytes
        self._empty()  # first what pools hold that were retired
        if manager.live_bytes < before:
            return True
        if not self._replace():
            return False
        self._empty()
        return manager.live_bytes < before

    # ------------------------------------------------------------------ what PyTorch calls

    def _allocate(self, size: int, device: int, stream: int | None) -> int | None:
        """Return a segment; a null pointer is out of memory, of which PyTorch tells in its own words."""
        try:
            manager = self._managers[device]
            if self._swapping:
                pointer = manager.driver.reserve(size)  # of an anchor, which nobody touches
                self._reserved[pointer] = device, size
                return pointer
            pointer = self._find(manager, size, device, stream)
        except MemoryError:
            return None
        except BaseException as error:  # noqa: BLE001 - PyTorch must get an answer
            raise_later(error)
            return None
        self._given[pointer] = self._generation
        self._segments_of[self._generation] += 1
        return pointer

    def _find(self, manager: AdvancedMemoryPoolManager, size: int, device: int, stream: int | None) -> int:
        if stream and manager.driver.is_capturing(stream):
            # PyTorch keeps the segment for the graph. All work before it is done when that first runs.
            with manager.driver.beside_capture(), uncollected():
                pointer = manager.malloc(size)
                manager.driver.synchronize(manager.driver.default_stream)
            return pointer
        self._asking.device = device
        try:
            return manager.malloc(size, stream)
        finally:
            self._asking.device = None

    def _free_function(self) -> Callable[..., None]:
        finalizing, given, counts = sys.is_finalizing, self._given, self._segments_of
        managers, reserved = self._managers, self._reserved

        def free(pointer: int, size: int, device: int, stream: int | None) -> None:  # noqa: ARG001
            if finalizing():
                return
            if pointer in reserved:
                managers[device].driver.unreserve(pointer, reserved.pop(pointer)[1])
                return
            managers[device].drop(pointer)
            generation = given.pop(pointer, 0)
            counts[generation] -= 1
            if counts[generation] <= 0:
                del counts[generation]

        return free


def mem_pool_over(segments: Segments, torch: Any) -> Any:
    """Return the `torch.cuda.MemPool` that stands for `segments`."""

    class SegmentPool(torch.cuda.MemPool):  # type: ignore[misc]
        """A pool of PyTorch's over a SmartPool."""

        @property
        def id(self) -> Any:
            """The name of the pool that is in use now."""
            return segments.current.id

        @property
        def allocator(self) -> Any:
            """Where the segments come from."""
            return segments.current.allocator

        def use_count(self) -> int:
            """How many uses the pool has: this object is one."""
            count: int = segments.current.use_count()
            return count

        def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
            if not finalizing():
                segments.close()

    return SegmentPool()


def _hook(torch: Any) -> Callable[[], None]:
    """Let PyTorch's `empty_cache` retire pools first; return PyTorch's own."""
    core = torch._C  # noqa: SLF001 - where `torch.cuda.empty_cache` looks for it
    for name in _EMPTIERS:
        before = getattr(core, name, None)
        if before is not None and not hasattr(before, "smartpool_before"):
            setattr(core, name, _retiring(before))
    own: Callable[[], None] = getattr(core, _EMPTIERS[0]).smartpool_before
    return own


def _retiring(before: Callable[[], None]) -> Callable[[], None]:
    def empty_cache() -> None:
        for segments in list(_alive):
            segments.retire()
        before()

    empty_cache.smartpool_before = before  # type: ignore[attr-defined]
    return empty_cache
