"""The face that processes share: buffers handed to others, and memory that comes back from them."""

from __future__ import annotations

from smartpool.buffer import Buffer
from smartpool.errors import SharingError
from smartpool.faces.devices import DevicePool
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.telemetry.statistics import OptimizationOutcome
from smartpool.sharing.endings import sweep
from smartpool.sharing.exports import export_buffer
from smartpool.sharing.shared import SharedBuffer

__all__ = ["SharingFace"]


class SharingFace(DevicePool):
    """`export`; and whoever makes room first asks whether other processes are done."""

    def export(self, buffer: Buffer) -> SharedBuffer:
        """Return what another process opens to read and write the memory of `buffer`.

        The block stays taken until the returned object is closed or dies, *and* no process has it open any
        more, whatever becomes of `buffer` and of the pool. Work that is queued on the device is waited for;
        later work is for the processes to order. See ``docs/sharing.md``.

        Parameters
        ----------
        buffer
            A buffer of this pool, which was made with ``SmartPoolConfig(shareable=True)``.

        Raises
        ------
        SharingError
            When `buffer` is not of this pool, or the pool's memory cannot be shared.
        BufferReleasedError
            When the buffer was freed.
        UnsupportedError
            When the memory is a raw allocation.

        Examples
        --------
        >>> import smartpool
        >>> pool = smartpool.SmartPool("cpu", smartpool.SmartPoolConfig(shareable=True))
        >>> buffer = pool.empty(3, "uint8")
        >>> buffer.memoryview()[:] = b"abc"
        >>> shared = pool.export(buffer)                # give it to another process, and there:
        >>> bytes(smartpool.open_shared(shared).memoryview())
        b'abc'
        """
        if not isinstance(buffer, Buffer) or not self._has(buffer):
            raise SharingError(
                f"expected a Buffer of {self!r}, got {buffer!r}; export a buffer by the pool that made it"
            )
        return export_buffer(buffer)

    def trim(self, keep_bytes: int = 0, *, wait: bool = False, captures: bool = False) -> int:
        """Give idle memory back until each device holds at most `keep_bytes`; return the bytes freed.

        With `wait`, what the device may still touch is waited for. With `captures`, what is held for graphs
        that were captured outside of `capture` goes, too: they must not be launched any more.
        """
        sweep()
        return super().trim(keep_bytes, wait=wait, captures=captures)

    def _background_pass(self) -> None:
        sweep()
        super()._background_pass()

    def _optimize(
        self, managers: tuple[AdvancedMemoryPoolManager, ...] | list[AdvancedMemoryPoolManager]
    ) -> OptimizationOutcome:
        sweep()
        return super()._optimize(managers)

    def _has(self, buffer: Buffer) -> bool:
        manager = buffer._pool()  # noqa: SLF001 - the faces are one class with what they hand out
        return any(manager is own for own in self.managers)
