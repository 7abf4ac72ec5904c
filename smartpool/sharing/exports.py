"""The exporting side: blocks that are kept because other processes may have them open.

An export holds the block as a DLPack consumer would. It ends when its `SharedBuffer` is closed or
collected, and the block is let go of once no process has it open. Nobody tells when that is, so ended
exports are looked at again whenever there is an occasion: another export or its end, `trim`, a pass of the
optimiser, and before a request fails for lack of memory.

What is still open elsewhere is held here, apart from its pool: a pool that is dropped stays alive by its
blocks, and a block that another process reads is never reused.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import SharingError, UnsupportedError
from smartpool.sharing.lease import Lease
from smartpool.sharing.shared import Description, SharedBuffer

if TYPE_CHECKING:
    from smartpool.buffer import Buffer
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["export_buffer", "sweep"]

_ended: Final[list[_Export]] = []
_sweeping: Final = threading.Lock()
_asked: Final[weakref.WeakSet[AdvancedMemoryPoolManager]] = weakref.WeakSet()  # know our callback


class _Export:
    """A block that is kept, and the lease that says for how long."""

    __slots__ = ("_lease_descriptor", "lease", "nbytes", "owner", "process")

    def __init__(self, owner: Any, nbytes: int, lease_descriptor: int) -> None:
        self.owner = owner
        self.nbytes = nbytes
        self.process = os.getpid()
        self._lease_descriptor = lease_descriptor
        self.lease = Lease(lease_descriptor)

    def end(self, wait: bool) -> None:  # noqa: FBT001 - called by whoever closes
        """Let go of the block, now or when no process has it open any more."""
        if os.getpid() != self.process:  # a forked child closes its copy: the export is the parent's
            os.close(self._lease_descriptor)
            return
        try:
            if wait:
                self.lease.revoke(wait=True)
        finally:  # an interrupt of the wait included: whoever has it open keeps the block
            _ended.append(self)
        sweep()

    def try_to_let_go(self) -> bool:
        """Return whether the block was let go of: nobody has it open, and nobody can open it any more."""
        if self.process == os.getpid() and not self.lease.revoke():
            return False
        os.close(self._lease_descriptor)
        self.owner = None
        return True


def export_buffer(buffer: Buffer) -> SharedBuffer:
    """Return a shared buffer over the block of `buffer`; see `SmartPool.export`."""
    manager = buffer._pool()  # noqa: SLF001 - the two are one idea in two modules
    driver = manager.driver
    if not manager.config.shareable:
        raise SharingError(
            f"expected a pool whose memory can be shared, got one on {driver.name} without; make it with "
            "SmartPoolConfig(shareable=True)"
        )
    sweep()
    owner = buffer._shared()  # noqa: SLF001
    extent = max(buffer.nbytes, 1)
    mapped = driver.mapped(buffer.pointer, extent)
    if sum(item.size for item in mapped) < extent:
        raise UnsupportedError(
            f"expected memory that is mapped from chunks, got {buffer!r}, which is a raw allocation; leave "
            "enable_advanced_pooling on, and use a device with virtual memory"
        )
    with driver.beside_capture():
        driver.synchronize()  # what was queued so far is in the memory when somebody opens it
    about = Description(
        device=driver.name,
        identity=getattr(driver, "identity", ""),
        offset=buffer.pointer - mapped[0].address,
        chunks=tuple(item.size for item in mapped),
        nbytes=buffer.nbytes,
        shape=tuple(buffer.shape),
        dtype=buffer.dtype.name,
        read_only=buffer.read_only,
    )
    descriptors: list[int] = []
    try:
        for item in mapped:
            descriptors.append(driver.export_chunk(item.chunk))  # noqa: PERF401 - those before one that fails
        descriptors.append(Lease.create())
        kept = _Export(owner, buffer.nbytes, os.dup(descriptors[-1]))
    except BaseException:
        while descriptors:
            os.close(descriptors.pop())
        raise
    if manager not in _asked:
        _asked.add(manager)
        manager.out_of_memory_callbacks.append(_make_room)
    return SharedBuffer(about, descriptors, kept.end)


def sweep() -> int:
    """Let go of the blocks of ended exports that no process has open any more; return their bytes."""
    freed = 0
    # A destructor may come here in the middle of a sweep of its own thread: that one goes on.
    if not _sweeping.acquire(blocking=False):
        return 0
    try:
        for export in list(_ended):
            if export.try_to_let_go():
                _ended.remove(export)
                freed += export.nbytes
    finally:
        _sweeping.release()
    return freed


def _make_room(nbytes: int) -> bool:  # noqa: ARG001 - a pool's callback
    return sweep() > 0
