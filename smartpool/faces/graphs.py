"""The face that graphs see: memory for what is captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from smartpool.errors import InvalidRequestError
from smartpool.faces.devices import DevicePool
from smartpool.pool.graphs.captures import GraphMemory, begin_capture, end_capture
from smartpool.pool.graphs.found import serve_captured
from smartpool.scopes import scoped

if TYPE_CHECKING:
    from smartpool.config import SmartPoolConfig
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["GraphFace"]


class GraphFace(DevicePool):
    """`capture`, and what a pool does about captures that nobody announced."""

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...], config: SmartPoolConfig) -> None:
        super().__init__(managers, config)
        for manager in managers:
            manager.on_capture = serve_captured

    @scoped
    def capture(
        self, stream: object, *, memory: GraphMemory | None = None, device_id: int = 0
    ) -> Iterator[GraphMemory]:
        """Serve what a capture of `stream` requests from memory that stays the graph's.

        Begin and end the capture inside of the block: the device is waited for on entry, and most of what
        a pool does is put off until the exit. Requests on `stream`, and on streams that joined its capture,
        get addresses that nobody else is given before the memory is closed, however often they are freed;
        inside the capture they are reused. Requests on other streams go on as ever.

        Parameters
        ----------
        stream
            The stream that will be captured: a handle, or an object with ``__cuda_stream__``.
        memory
            Memory of an earlier capture, to be reused by this one: for graphs that are launched one after
            the other, never side by side.
        device_id
            Number of the device in this pool.

        Yields
        ------
        GraphMemory
            What the graph holds. Close it when the graph is gone. If the block raises and the memory is new,
            it is closed at once: there is no graph.

        Raises
        ------
        CaptureError
            When the stream is being captured already, or is the default stream; when another capture or a
            planned step is under way on the device; when `memory` is closed or of another device.
        StreamError, DeviceNotFoundError, PoolClosedError, UnsupportedError
            When the stream, the device or the pool is wrong.

        Examples
        --------
        >>> import smartpool
        >>> pool = smartpool.SmartPool("cpu")
        >>> driver = pool.managers[0].driver
        >>> stream = driver.create_stream()
        >>> with pool.capture(stream) as held:
        ...     driver.begin_capture(stream)                # CUDA: the framework's own way to begin
        ...     pointer = pool.malloc(1000, stream)
        ...     driver.fill(pointer, 1, 1000, stream)
        ...     pool.free(pointer)
        ...     graph = driver.end_capture(stream)
        >>> graph.replay()                                  # writes where nobody else is
        >>> held.held_bytes
        1024
        >>> held.close()                                    # once the graph is gone
        """
        if memory is not None and not isinstance(memory, GraphMemory):
            raise InvalidRequestError(
                f"memory: expected what an earlier capture of this pool gave, or None, got {memory!r}"
            )
        manager = self._manager_of(device_id)
        handle = manager.driver.stream(stream)
        held = GraphMemory(manager) if memory is None else memory
        begin_capture(manager, held, handle)
        try:
            yield held
        except BaseException:
            end_capture(manager)
            if memory is None:
                held.close()
            raise
        end_capture(manager)
