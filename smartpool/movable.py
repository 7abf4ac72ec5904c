"""Movable buffers: memory whose address may change while nobody looks.

On a device without virtual memory a block cannot be shown elsewhere; it can only be copied. So its
owner must not keep its address. A `MovableBuffer` is a handle: whoever wants to use the memory *pins*
it and gets an ordinary `Buffer` in return, a view that may be exported like any other. While the view or
anything that was exported from it is held, the block stays; in between, `SmartPool.optimize_memory`
may copy it to where it leaves larger free ranges.

Unpinning may happen in a destructor, in the middle of anything, so it takes no lock: a pin is a token in
a list. Pinning, freeing and moving exclude one another by the lock of the pool's movables. The address
is a token in a list as well: whoever takes it out frees the block, so it is freed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from smartpool.buffer import Buffer
from smartpool.errors import BufferReleasedError, ReentrantCallError, UnsupportedError

if TYPE_CHECKING:
    from smartpool.dlpack import DType
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["MovableBuffer"]


class MovableBuffer:
    """Memory of a pool that may be moved. Made by `SmartPool.movable`; freed when it dies.

    Attributes
    ----------
    nbytes, shape, dtype
        As requested.

    Examples
    --------
    >>> import numpy, smartpool
    >>> with smartpool.SmartPool("cpu") as pool:
    ...     weights = pool.movable((2, 3), "float32")
    ...     with weights.pinned() as view:
    ...         numpy.from_dlpack(view)[:] = 7
    ...     outcome = pool.optimize_memory()                # may move it
    ...     float(numpy.from_dlpack(weights).sum())         # pinned as long as the array lives
    42.0
    """

    __slots__ = (
        "__weakref__",
        "_held",
        "_manager",
        "_moving",
        "_pins",
        "_released",
        "dtype",
        "nbytes",
        "shape",
    )

    def __init__(
        self,
        manager: AdvancedMemoryPoolManager,
        pointer: int,
        nbytes: int,
        shape: tuple[int, ...],
        dtype: DType,
    ) -> None:
        self._released = self._moving = False
        self._pins: list[None] = []
        self._held = [pointer]
        self._manager = manager
        self.nbytes = nbytes
        self.shape = shape
        self.dtype = dtype
        manager.movables.add(self)

    def __del__(self) -> None:
        # Nobody can be moving it: who moves a block holds its owner.
        if getattr(self, "_manager", None) is not None:
            self._give_back()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise UnsupportedError(
            "a MovableBuffer owns its memory and cannot be copied or pickled; copy what is in it"
        )

    def __repr__(self) -> str:
        if self._released:
            return "<MovableBuffer: released>"
        state = "pinned" if self._pins else "movable"
        return f"<MovableBuffer: {self.shape} {self.dtype} on {self.device}, {state}>"

    @property
    def device(self) -> str:
        """The name of the device, such as ``"cuda:0"``."""
        return self._manager.driver.name

    @property
    def is_pinned(self) -> bool:
        """Whether somebody holds a view of it."""
        return bool(self._pins)

    @property
    def released(self) -> bool:
        """Whether `free` was called."""
        return self._released

    # ------------------------------------------------------------------ use

    def pin(self) -> Buffer:
        """Return a view of the memory where it is now; it stays there until the view is freed or dies.

        Consumers to which the view was exported keep it there as well.

        Raises
        ------
        BufferReleasedError
            When it was freed.
        ReentrantCallError
            In a signal handler or a destructor, in the middle of moving this very block.
        """
        with self._manager.movables.lock:
            if self._released:
                raise BufferReleasedError("expected a movable buffer that is held, this one was freed")
            if self._moving:
                raise ReentrantCallError(
                    "expected no pin in the middle of this thread's own compaction: a destructor or a "
                    "signal handler asked for one; do it from outside of those"
                )
            self._pins.append(None)
            view = Buffer(
                cast("AdvancedMemoryPoolManager", _Pin(self, self._manager)), self._held[0], self.nbytes
            )
        view._shape = self.shape  # noqa: SLF001 - as `SmartPool.empty`
        view._dtype = self.dtype  # noqa: SLF001
        return view

    @contextmanager
    def pinned(self) -> Iterator[Buffer]:
        """Pin it for the length of a ``with`` block, and yield the view.

        Work that is queued inside may go on afterwards: what moves the block is queued behind it, on
        the stream that the buffer was made for. Tell other streams by `Buffer.record_stream`.
        """
        view = self.pin()
        try:
            yield view
        finally:
            if not view.released:
                view.free()

    def free(self, stream: object = None) -> None:
        """Give the memory back now; consumers that still hold a view keep it until they are done.

        Parameters
        ----------
        stream
            The stream that used the memory last; None for the one it was made for.

        Raises
        ------
        BufferReleasedError
            When it was freed already.
        """
        # The pool's lock comes before the movables', as in a compaction; `record_stream` takes it.
        first = nullcontext() if stream is None else self._manager._lock  # noqa: SLF001
        with first, self._manager.movables.lock:
            if self._released:
                raise BufferReleasedError(
                    "expected a movable buffer that is held, this one was freed; free it once"
                )
            if stream is not None and not self._moving:
                self._manager.record_stream(self._held[0], stream)
            self._released = True
            if not self._pins and not self._moving:
                self._give_back()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._manager.driver.dl_device

    def __dlpack__(self, **asked: Any) -> Any:
        """Export a view; the block is pinned until the consumer is done."""
        return self.pin().__dlpack__(**asked)

    # ------------------------------------------------------------------ what moves it

    def begin_move(self) -> int | None:
        """Hold the block in place for the pool, unless it is pinned or gone. Under the movables' lock."""
        self._moving = True  # first: from here on a free on this thread waits for `end_move`
        if self._pins or self._released or not self._held:
            self.end_move(self._held[0] if self._held else 0)
            return None
        return self._held[0]

    def end_move(self, address: int) -> None:
        """Let go of the block, which is at `address` now."""
        if self._held:
            self._held[0] = address
        self._moving = False
        if self._released and not self._pins:
            self._give_back()

    def unpin(self) -> None:
        """Forget one view. Any thread may come here, in a destructor, in the middle of anything."""
        self._pins.pop()
        if self._released and not self._pins and not self._moving:
            self._give_back()

    def _give_back(self) -> None:
        try:
            address = self._held.pop()
        except IndexError:  # it was given back
            return
        self._manager.drop(address)


class _Pin:
    """A manager as a view sees it: to free the view is to unpin.

    What a view may ask of its manager is written out: whatever gives blocks back must not get past.
    """

    __slots__ = ("_movable", "driver", "malloc", "order_after", "record_stream", "stream_of")

    def __init__(self, movable: MovableBuffer, manager: AdvancedMemoryPoolManager) -> None:
        self._movable = movable
        self.driver = manager.driver
        self.malloc = manager.malloc
        self.order_after = manager.order_after
        self.record_stream = manager.record_stream
        self.stream_of = manager.stream_of

    def free(self, pointer: int, stream: object = None) -> None:
        if stream is not None:
            self.record_stream(pointer, stream)
        self._movable.unpin()

    def drop(self, pointer: int) -> None:  # noqa: ARG002 - a manager's method
        self._movable.unpin()
