"""`SmartPool`: the pool that users hold, on one device or on several.

The everyday face (`empty`, `allocate`), the runtime author's face (`malloc`, `free`), and the face
of the original design (`allocate_memory`, `deallocate_memory`, `optimize_memory`,
`get_statistics`) stand on the same managers, one a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from smartpool.buffer import Buffer, byte_count, checked_shape
from smartpool.config import SmartPoolConfig
from smartpool.dlpack import DType
from smartpool.driver import open_driver
from smartpool.errors import (
    BackgroundError,
    ConfigurationError,
    DeviceNotFoundError,
    DoubleFreeError,
    InvalidRequestError,
    PoolClosedError,
    UnknownPointerError,
)
from smartpool.pool.background import Background
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.statistics import MemorySnapshot, OptimizationOutcome, PoolStatistics
from smartpool.recording import PoolRecording
from smartpool.request import AllocationRequest
from smartpool.units import format_size

if TYPE_CHECKING:
    from smartpool.optimizer import GPUMemoryOptimizer
    from smartpool.trace.trace import Trace

__all__ = ["AllocationResult", "SmartPool"]


_new = object.__new__


class AllocationResult(NamedTuple):
    """What `SmartPool.allocate_memory` gives: the buffer, and the id that frees it."""

    buffer: Buffer
    allocation_id: int


class SmartPool:
    """A memory pool on one or several devices. Thread-safe.

    Parameters
    ----------
    device
        A device name (``"cuda:0"``, ``"cpu"``, ``"model:80GiB"``), a sequence of names, or a
        `GPUMemoryOptimizer`, which says on which devices. The first is where requests go that name none of
        the faces' device arguments.
    config
        How the pool behaves; None for the optimizer's own configuration, or the defaults.

    Raises
    ------
    DeviceNotFoundError, DriverNotInstalledError
        When a device is not there. Nothing else is used in its place.
    ConfigurationError
        When a configuration value is wrong.

    Examples
    --------
    >>> import smartpool
    >>> with smartpool.SmartPool("model:1GiB") as pool:
    ...     pointer = pool.malloc(1000)
    ...     pool.free(pointer)
    ...     pool
    <SmartPool on model:1GiB: 0 B live, 2 MiB reserved>
    """

    def __init__(
        self,
        device: str | list[str] | tuple[str, ...] | GPUMemoryOptimizer = "cuda:0",
        config: SmartPoolConfig | None = None,
    ) -> None:
        if config is not None and not isinstance(config, SmartPoolConfig):
            raise ConfigurationError("config", f"expected a SmartPoolConfig, got {config!r}")
        names = _device_names(device)
        self.config = config or getattr(device, "pool_config", None) or SmartPoolConfig()
        self.managers = _open_managers(names, self.config)
        self._manager = self.managers[0]
        self._malloc: Callable[..., int] = self._manager.malloc
        self._bins, self._live = self._manager.quick_path
        self._ids = itertools.count(1)
        self._allocations: dict[int, Buffer] = {}
        self._last_id = 0
        self._recording = PoolRecording(self.managers)
        self._optimizations = self._memory_freed_bytes = 0
        self._closed = False
        if len(self.managers) == 1:
            # The same methods, one call nearer: a third of the time of a cached request.
            self.malloc = self._manager.malloc  # type: ignore[method-assign]
            self.free = self._manager.free  # type: ignore[method-assign]
        if self.config.record:
            self.start_recording()
        self.background = Background(self, self.config.optimization_interval)
        if self.config.enable_auto_defragmentation:
            for manager in self.managers:
                manager.on_pressure = self.background.wake
            self.background.start()

    def __repr__(self) -> str:
        devices = ", ".join(manager.driver.name for manager in self.managers)
        if self._closed:
            return f"<SmartPool on {devices}: closed>"
        live = sum(manager.live_bytes for manager in self.managers)
        reserved = sum(manager.reserved_bytes for manager in self.managers)
        return f"<SmartPool on {devices}: {format_size(live)} live, {format_size(reserved)} reserved>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------ buffers

    def allocate(self, nbytes: int, stream: object = None) -> Buffer:
        """Return a buffer of `nbytes` bytes on the first device, freed when it dies.

        Parameters
        ----------
        nbytes
            Size in bytes.
        stream
            The stream on which it is first used; None for the default stream.

        Raises
        ------
        InvalidSizeError, StreamError, OutOfMemoryError, PoolClosedError
            As `AdvancedMemoryPoolManager.malloc`.
        """
        # `malloc` and `Buffer.__init__` written out: two calls fewer, a third of the time.
        if stream is None and nbytes.__class__ is int:
            try:
                bin_ = self._bins[nbytes]
                pointer = bin_.pop()
            except (KeyError, IndexError):
                pass  # searched outside of the handler: an error there is not about this
            else:
                self._live[pointer] = bin_
                buffer = _new(Buffer)
                buffer.pointer = pointer
                buffer.nbytes = nbytes
                buffer._manager = self._manager  # noqa: SLF001
                return buffer
        return Buffer(self._manager, self._malloc(nbytes, stream), nbytes)

    def empty(
        self,
        shape: object,
        dtype: object = "float32",
        *,
        stream: object = None,
        device_id: int | None = None,
        alignment: int | None = None,
    ) -> Buffer:
        """Return a buffer for an array of `shape` and `dtype`, row-major, with arbitrary contents.

        Parameters
        ----------
        shape
            An integer or a sequence of integers.
        dtype
            Anything that `smartpool.dlpack.DType.parse` knows: ``"float16"``, ``"bfloat16"``,
            ``numpy.float32``, ``torch.float8_e4m3fn``, ``complex``.
        stream
            The stream on which it is first used; None for the default stream.
        device_id
            Number of the device in this pool; None for the first.
        alignment
            A power of two in bytes, beyond the 512 that every buffer has.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("cpu") as pool:
        ...     buffer = pool.empty((4, 2), "bfloat16")
        ...     buffer.shape, buffer.nbytes
        ((4, 2), 16)
        """
        shape = checked_shape(shape)
        parsed = DType.parse(dtype)
        nbytes = byte_count(shape, parsed)
        manager = self._manager if device_id is None else self._manager_of(device_id)
        if alignment is None:
            pointer = manager.malloc(nbytes, stream)
        else:
            request = AllocationRequest(size=nbytes, alignment=alignment)
            pointer = manager.malloc_aligned(nbytes, request.alignment or 1, stream)
        buffer = Buffer(manager, pointer, nbytes)
        buffer._shape = shape  # noqa: SLF001 - unset unless needed, so that `allocate` does not pay for them
        buffer._dtype = parsed  # noqa: SLF001
        return buffer

    # ------------------------------------------------------------------ bare memory

    def malloc(self, nbytes: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes on the first device: `AdvancedMemoryPoolManager.malloc`."""
        return self._manager.malloc(nbytes, stream)

    def free(self, pointer: int, stream: object = None) -> None:
        """Free what `malloc` returned, on whichever device it is: `AdvancedMemoryPoolManager.free`."""
        for manager in self.managers[1:]:
            if manager.owns(pointer):
                manager.free(pointer, stream)
                return
        self._manager.free(pointer, stream)

    @contextmanager
    def step(self, name: str = "step", *, wait_for_plan: bool = False) -> Iterator[None]:
        """Mark one repetition of something that repeats itself, such as a training step.

        The first repetition is recorded, then planned on another thread; later ones are served
        from the plan, by index: no search, no driver call. Requests of the thread that entered, on
        the default stream, take part. What does not match is counted and served as always.

        Parameters
        ----------
        name
            Steps of different kinds, such as training and evaluation, have plans of their own.
        wait_for_plan
            Wait for the plan of an earlier repetition if the planner is still at work.

        Raises
        ------
        StepError
            When a step is under way already.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     for _ in range(3):
        ...         with pool.step(wait_for_plan=True):
        ...             pool.free(pool.malloc(1000))
        ...     pool.statistics.devices[0].steps.hits
        2
        """
        with ExitStack() as ended:
            for manager in self.managers:
                manager.begin_step(name, wait_for_plan=wait_for_plan)
                ended.callback(manager.end_step)
            yield

    # ------------------------------------------------------------------ the original design's face

    def allocate_memory(self, request: AllocationRequest) -> AllocationResult:
        """Serve a request; the buffer is the pool's until `deallocate_memory` is told its id.

        A request without a device goes to the one with most free memory.

        Raises
        ------
        DeviceNotFoundError
            When `device_id` is not one of this pool's devices.
        OutOfMemoryError
            When the device cannot hold it.
        """
        if not isinstance(request, AllocationRequest):
            raise InvalidRequestError(f"expected an AllocationRequest, got {request!r}")
        manager = self._roomiest() if request.device_id is None else self._manager_of(request.device_id)
        if request.alignment is None:
            pointer = manager.malloc(request.size, request.stream)
        else:
            pointer = manager.malloc_aligned(request.size, request.alignment, request.stream)
        buffer = Buffer(manager, pointer, request.size)
        allocation_id = self._last_id = next(self._ids)
        self._allocations[allocation_id] = buffer
        return AllocationResult(buffer, allocation_id)

    def deallocate_memory(self, allocation_id: int, stream: object = None) -> None:
        """Free an allocation; consumers that still hold it through DLPack keep it until they are done.

        Raises
        ------
        DoubleFreeError
            When it was freed already.
        UnknownPointerError
            When the id is not one of this pool's.
        """
        try:
            buffer = self._allocations.pop(allocation_id)
        except (KeyError, TypeError):
            raise self._bad_id(allocation_id) from None
        if buffer.released:
            raise DoubleFreeError(f"allocation {allocation_id} was freed already, by Buffer.free")
        try:
            buffer.free(stream)
        except BaseException:
            self._allocations[allocation_id] = buffer
            raise

    def optimize_memory(self) -> OptimizationOutcome:
        """Empty the bins, join free ranges, and give idle memory back to the devices.

        Memory that a device may still be using is left for the next time.

        Raises
        ------
        BackgroundError
            When the background optimiser failed since the last call; its error is the cause.
        PoolClosedError
            When the pool was closed.
        """
        self._require_open()
        failed = self.background.take_error()
        if failed is not None:
            raise BackgroundError("the background optimiser failed; see the cause") from failed
        return self._optimize(self.managers)

    def add_out_of_memory_callback(self, callback: Callable[[int], bool]) -> None:
        """Ask `callback(nbytes)` before a request of `nbytes` fails for lack of memory.

        It returns True when it freed something, and the request is tried again; False to let it
        fail. It may free and trim, and must not allocate from this pool. A True after which no less
        is live than before counts as False the second time.
        """
        if not callable(callback):
            raise InvalidRequestError(f"callback: expected a function of the bytes wanted, got {callback!r}")
        for manager in self.managers:
            manager.out_of_memory_callbacks.append(callback)

    def remove_out_of_memory_callback(self, callback: Callable[[int], bool]) -> None:
        """Ask `callback` no more; `ValueError` when it was not added."""
        for manager in self.managers:
            manager.out_of_memory_callbacks.remove(callback)

    # ------------------------------------------------------------------ what it did

    @property
    def statistics(self) -> PoolStatistics:
        """A frozen snapshot over all devices. O(live blocks), and with a recording O(new events)."""
        return PoolStatistics(
            devices=tuple(manager.snapshot() for manager in self.managers),
            target_reduction=self.config.target_fragmentation_reduction,
            reduction=self._recording.reduction(),
            optimizations=self._optimizations,
            memory_freed_bytes=self._memory_freed_bytes,
            background_passes=self.background.passes,
            background_running=self.background.running,
            background_error=self.background.error,
        )

    def get_statistics(self) -> dict[str, Any]:
        """Return `statistics` in plain dictionaries; `docs/statistics.md` describes every key."""
        return self.statistics.as_dict()

    def start_recording(self) -> None:
        """Record every request and free from now on. A recording that is on goes on."""
        self._require_open()
        self._recording.start()

    def stop_recording(self) -> Trace | None:
        """End the recording and return the trace of the first device, or None when none was on."""
        trace = self.recording()
        self._recording.stop()
        return trace

    def recording(self, device_id: int = 0) -> Trace | None:
        """Return what was recorded so far on a device, or None when no recording is on."""
        self._manager_of(device_id)  # says what is wrong with a number that is not there
        return self._recording.trace(device_id)

    # ------------------------------------------------------------------ life

    def trim(self, keep_bytes: int = 0, *, wait: bool = False) -> int:
        """Give idle memory back until each device holds at most `keep_bytes`; return the bytes freed."""
        self._require_open()
        return sum(manager.trim(keep_bytes, wait=wait) for manager in self.managers)

    def check(self) -> None:
        """Prove every invariant of every device; `InvariantError` when one is broken."""
        for manager in self.managers:
            manager.check()

    def close(self) -> None:
        """Refuse requests from now on. Memory goes back once nothing is live. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.background.stop()
        allocations, self._allocations = self._allocations, {}
        allocations.clear()
        for manager in self.managers:
            manager.close()

    def background_pass(self) -> None:
        """Do what is due: called by the background thread.

        Memory is given back on devices under pressure or fragmented beyond the threshold.
        """
        due = [manager for manager in self.managers if self._is_due(manager.snapshot())]
        if due and not self._closed:
            self._optimize(due)

    def _is_due(self, now: MemorySnapshot) -> bool:
        config = self.config
        if now.reserved_bytes > now.live_bytes and now.pressure >= config.memory_pressure_threshold:
            return True
        return now.fragmentation.overall > config.fragmentation_threshold

    def _optimize(
        self, managers: tuple[AdvancedMemoryPoolManager, ...] | list[AdvancedMemoryPoolManager]
    ) -> OptimizationOutcome:
        before = max(manager.fragmentation().overall for manager in managers)
        freed = sum(manager.trim() for manager in managers)
        after = max(manager.fragmentation().overall for manager in managers)
        outcome = OptimizationOutcome(
            fragmentation_before=before,
            fragmentation_after=after,
            memory_freed_bytes=freed,
            devices=tuple(manager.driver.name for manager in managers),
        )
        self._optimizations += 1
        self._memory_freed_bytes += freed
        return outcome

    def _manager_of(self, device_id: int) -> AdvancedMemoryPoolManager:
        if not 0 <= device_id < len(self.managers):
            raise DeviceNotFoundError(
                f"expected a device_id from 0 to {len(self.managers) - 1}, the devices of this pool, "
                f"got {device_id}; name the device when the pool is made"
            )
        return self.managers[device_id]

    def _roomiest(self) -> AdvancedMemoryPoolManager:
        if len(self.managers) == 1:
            return self._manager
        return max(self.managers, key=lambda manager: manager.available_bytes)

    def _bad_id(self, allocation_id: object) -> DoubleFreeError | UnknownPointerError:
        if isinstance(allocation_id, int) and 0 < allocation_id <= self._last_id:
            return DoubleFreeError(
                f"allocation {allocation_id} was freed already; free every allocation once"
            )
        return UnknownPointerError(
            f"expected the id of an allocation of this pool, got {allocation_id!r}; "
            "use the allocation_id that allocate_memory returned"
        )

    def _require_open(self) -> None:
        if self._closed:
            raise PoolClosedError("expected an open pool, this one was closed")


def _device_names(device: object) -> tuple[str, ...]:
    """Return the names of the devices that `device` stands for."""
    if isinstance(device, str):
        return (device,)
    names = getattr(device, "device_names", device)
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise DeviceNotFoundError(
        f"expected a device name, a sequence of names or a GPUMemoryOptimizer, got {device!r}; "
        "use 'cuda:0', 'cpu' or 'model:80GiB'"
    )


def _open_managers(names: tuple[str, ...], config: SmartPoolConfig) -> tuple[AdvancedMemoryPoolManager, ...]:
    """Open every device, or none."""
    managers: list[AdvancedMemoryPoolManager] = []
    try:
        managers.extend(AdvancedMemoryPoolManager(open_driver(name), config) for name in names)
    except BaseException:
        for manager in managers:
            manager.close()
        raise
    return tuple(managers)
