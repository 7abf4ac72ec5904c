"""The face for memory that may be moved."""

from __future__ import annotations

from smartpool.buffer import byte_count, checked_shape
from smartpool.dlpack import DType
from smartpool.faces.devices import DevicePool
from smartpool.movable import MovableBuffer

__all__ = ["MovingFace"]


class MovingFace(DevicePool):
    """`movable`."""

    def movable(
        self, shape: object, dtype: object = "uint8", *, stream: object = None, device_id: int | None = None
    ) -> MovableBuffer:
        """Return a handle of memory that `optimize_memory` may move while nobody uses it.

        Worth it where a device has no virtual memory, for what is large and lives long: there a block
        that cannot move keeps a whole segment. With virtual memory nothing is ever moved.

        Parameters
        ----------
        shape, dtype
            As for `SmartPool.empty`; an integer is a number of bytes.
        stream
            The stream on which it is first used, and moved; None for the default stream.
        device_id
            Number of the device in this pool; None for the first.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("cpu") as pool:
        ...     handle = pool.movable(1000)
        ...     with handle.pinned() as view:
        ...         view.nbytes
        1000
        """
        shape = checked_shape(shape)
        parsed = DType.parse(dtype)
        nbytes = byte_count(shape, parsed)
        manager = self._manager if device_id is None else self._manager_of(device_id)
        return MovableBuffer(manager, manager.malloc(nbytes, stream), nbytes, shape, parsed)
