"""The exporting side: blocks that are kept because other processes may have them open.

An export holds the block as a DLPack consumer would. It is over when its `SharedBuffer` is closed or
gone, and the block is let go of once no process has it open. Nobody tells when that is, so exports that are
over are looked at again whenever there is an occasion: another export or its end, `trim`, a pass of the
optimizer, and before a request fails for lack of memory.

What is still open elsewhere is held here, apart from its pool: a pool that is dropped stays alive by its
blocks, and a block that another process reads is never reused.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from smartpool.descriptors import Descriptor
from smartpool.errors import SharingError, UnsupportedError
from smartpool.sharing.endings import keep, sweep
from smartpool.sharing.lease import end_lease, new_lease, wanting_descriptors
from smartpool.sharing.shared import SharedBuffer
from smartpool.sharing.wire import Description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpool.buffer import Buffer
    from smartpool.driver.protocol import Driver, MappedRange

__all__ = ["export_buffer"]


class _Export:
    """A block that is kept, and the lease that says for how long."""

    def __init__(self, owner: Any, nbytes: int, shared: SharedBuffer, lease: Descriptor) -> None:
        self.owner = owner
        self.nbytes = nbytes
        self._shared = weakref.ref(shared)
        self._lease: Descriptor | None = lease  # None: nobody holds it, or ever will
        self._process = os.getpid()

    @property
    def over(self) -> bool:
        """Whether nobody can hand it on any more; in a forked child it is the parent's."""
        shared = self._shared()
        return shared is None or shared.closed or self._process != os.getpid()

    def end(self) -> bool:
        """Let go of the block, if nobody has it open, or ever will."""
        lease = self._lease
        if lease is not None and self._process == os.getpid() and not end_lease(lease):
            return False
        self.owner = self._lease = None
        return True

    def wait(self) -> None:
        """Block until no process has it open."""
        lease = self._lease
        if lease is not None and self._process == os.getpid():
            end_lease(lease, wait=True)


def export_buffer(buffer: Buffer) -> SharedBuffer:
    """Return a shared buffer over the block of `buffer`; see `SmartPool.export`."""
    manager = buffer._pool()  # noqa: SLF001 - the two are one idea in two modules
    if not manager.config.shareable:
        raise SharingError(
            f"expected a pool whose memory can be shared, got one on {manager.driver.name} without; make it "
            "with SmartPoolConfig(shareable=True)"
        )
    sweep()
    owner = buffer._shared()  # noqa: SLF001
    with manager.working():
        mapped = manager.slow_path.heap.mapped(buffer.pointer, max(buffer.nbytes, 1))
        about, chunks = _described(buffer, manager.driver, mapped)
        with wanting_descriptors():
            files = [Descriptor.of(manager.driver.export_chunk, chunk) for chunk in chunks]
            files.append(new_lease())
        with manager.driver.beside_capture():
            manager.driver.synchronize()  # what was queued so far is in the memory when somebody opens it
    shared = SharedBuffer(about, files)
    shared._export = export = _Export(owner, buffer.nbytes, shared, files[-1])  # noqa: SLF001
    keep(export)
    if _make_room not in manager.out_of_memory_callbacks:
        manager.out_of_memory_callbacks.append(_make_room)
    return shared


def _described(
    buffer: Buffer, driver: Driver, mapped: Sequence[MappedRange]
) -> tuple[Description, list[int]]:
    """Return what the other process must know, and the chunks under the block."""
    if not mapped:
        raise UnsupportedError(
            f"expected memory that is mapped from chunks, got {buffer!r}, which is a raw allocation; leave "
            "enable_advanced_pooling on, and use a device with virtual memory"
        )
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
    return about, [item.chunk for item in mapped]


def _make_room(nbytes: int) -> bool:  # noqa: ARG001 - a pool's callback
    return any(isinstance(ended, _Export) for ended in sweep())
