"""`SmartPool`: the pool that users hold, on one device or on several.

Who writes a runtime asks for bare memory (`malloc`, `free`), who writes a program for buffers (`empty`,
`allocate`), and who came with the original design hands in requests as values (`allocate_memory`). All of it
stands on one pool a device; what is done on all of them is `smartpool.pool_set`.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from inspect import unwrap
from types import FunctionType, MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    NamedTuple,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Unpack,
    cast,
    runtime_checkable,
)

from smartpool.background_optimizer import Maintenance
from smartpool.buffer import Buffer
from smartpool.config import Settings, SmartPoolConfig
from smartpool.copying import not_copied
from smartpool.dlpack import DType, DTypeLike, byte_count, checked_shape
from smartpool.driver import Driver
from smartpool.driver.protocol import Stream
from smartpool.errors import (
    BufferReleasedError,
    DoubleFreeError,
    InvalidRequestError,
    OutOfMemoryError,
    SharingError,
    UnknownPointerError,
)
from smartpool.graphs.memory import GraphMemory
from smartpool.pool_set import PoolSet
from smartpool.request import AllocationRequest, Shape, checked_size
from smartpool.scopes import scoped
from smartpool.sharing.exports import export_buffer
from smartpool.sharing.shared import SharedBuffer
from smartpool.telemetry.hooks import Hooks
from smartpool.telemetry.labels import tagged
from smartpool.telemetry.statistics import PoolStatistics, Reduction
from smartpool.units import format_size
from smartpool.values import as_integer, shown

if TYPE_CHECKING:
    from smartpool.live.server import LiveServer
    from smartpool.manager import AdvancedMemoryPoolManager
    from smartpool.trace.recording import PoolRecording
    from smartpool.trace.trace import Trace

__all__ = ["AllocationResult", "SmartPool"]

_new = object.__new__

P = ParamSpec("P")
T = TypeVar("T")


def _delegated(
    attribute: str, method: Callable[Concatenate[Any, P], T]
) -> Callable[Concatenate[SmartPool, P], T]:
    """Return a method of `SmartPool` that is one of what it has under `attribute`, documentation and all."""

    @wraps(method)
    def delegating(pool: SmartPool, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(getattr(pool, attribute), *args, **kwargs)

    for function in (delegating, unwrap(method)):  # errors about arguments tell this name
        function.__qualname__ = f"SmartPool.{method.__name__}"
    return delegating


class AllocationResult(NamedTuple):
    """What `SmartPool.allocate_memory` gives: the buffer, and the id that frees it."""

    buffer: Buffer
    allocation_id: int


@runtime_checkable
class HasDevices(Protocol):
    """What says on which devices a pool is to be, and how it is to behave: a `GPUMemoryOptimizer`."""

    devices: tuple[str | Driver, ...]
    pool_config: SmartPoolConfig


class SmartPool:
    """A memory pool on one or several devices. Thread-safe.

    Parameters
    ----------
    device
        A device name (``"cuda:0"``, ``"cpu"``, ``"model:80GiB"``), a `smartpool.driver.Driver` of your own,
        a sequence of these, or a `GPUMemoryOptimizer`, which says on which devices. Requests that name no
        device go to the first. A driver is the pool's from then on, and closed with it.
    config
        How the pool behaves, as a `SmartPoolConfig` or a mapping of its fields; None for the optimizer's own
        configuration, or the defaults.
    **settings
        Fields of `SmartPoolConfig`, in place of those in `config`.

    Attributes
    ----------
    config
        The `SmartPoolConfig`.
    managers
        The pools of the devices, one each, in order: `AdvancedMemoryPoolManager`.
    hooks
        What may be called when something happens to the memory: `docs/statistics.md`.

    Raises
    ------
    DeviceNotFoundError, DriverNotInstalledError
        When a device is not there. Nothing else is used in its place.
    ConfigurationError
        When a configuration value is wrong, or a driver lacks a member of the protocol.

    Examples
    --------
    >>> import smartpool
    >>> with smartpool.SmartPool("model:1GiB", max_bytes="512MiB") as pool:
    ...     pointer = pool.malloc(1000)
    ...     pool.free(pointer)
    ...     pool
    <SmartPool on model:1GiB: 0 B live, 2 MiB reserved>
    """

    _recording: PoolRecording | None = None  # until one begins

    config: SmartPoolConfig
    managers: tuple[AdvancedMemoryPoolManager, ...]
    hooks: Hooks

    def __init__(
        self,
        device: str | Driver | Sequence[str | Driver] | HasDevices = "cuda:0",
        config: SmartPoolConfig | Mapping[str, object] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        devices: object = device
        if isinstance(device, HasDevices):
            devices, config = device.devices, device.pool_config if config is None else config
        self.config = SmartPoolConfig.of(config).changed(settings)
        self._pools = pools = PoolSet(devices, self.config)
        self.managers, self.hooks = pools.managers, pools.hooks
        self._allocations: dict[int, Buffer] = {}  # what the pool itself holds, by number
        self._ids = itertools.count(1)
        self._last_id = 0
        self._maintenance = Maintenance(pools)
        self._manager = self.managers[0]
        self._malloc: Callable[..., int] = self._manager.malloc
        self._bins, self._live = self._manager.quick_path
        # The same methods, one call nearer: a third of the time of a cached request.
        self.malloc = _named("SmartPool.malloc", self._malloc)  # type: ignore[method-assign]
        freeing = self._manager.free if len(self.managers) == 1 else pools.free
        self.free = _named("SmartPool.free", freeing)  # type: ignore[method-assign]
        if self.config.record:
            self.start_recording()
        if self.config.enable_auto_defragmentation:
            self._maintenance.start()

    __reduce_ex__ = not_copied

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def __repr__(self) -> str:
        return repr(self._pools)

    def __enter__(self) -> Self:
        self._pools.require_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------ buffers

    def allocate(self, nbytes: int, stream: Stream = None) -> Buffer:
        """Return a buffer of `nbytes` bytes on the first device, freed when it dies.

        It is first used on `stream`, None for the default one. Raises as `AdvancedMemoryPoolManager.malloc`.
        """
        # `malloc` and `Buffer.__init__` written out: two calls fewer, a third of the time.
        if stream is None and nbytes.__class__ is int:
            try:
                bin_ = self._bins[nbytes]
                pointer = bin_.pop()
            except (KeyError, IndexError):
                pass  # searched outside of the handler: an error there is not about this
            else:
                try:
                    self._live[pointer] = bin_
                except BaseException:  # as `enter`
                    dict.pop(self._live, pointer, None)
                    bin_.append(pointer)
                    bin_.quiet = False
                    bin_.touched.add(bin_)
                    raise
                buffer = _new(Buffer)
                buffer._pointer = pointer  # noqa: SLF001
                buffer.nbytes = nbytes
                buffer._manager = self._manager  # noqa: SLF001
                return buffer
        nbytes = checked_size(nbytes)  # what is kept is no object of the caller's
        return Buffer(self._manager, self._malloc(nbytes, stream), nbytes)

    def empty(
        self,
        shape: Shape,
        dtype: DTypeLike = "float32",
        *,
        stream: Stream = None,
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
        manager = self._manager if device_id is None else self._pools.of(device_id)
        if alignment is None:
            pointer = manager.malloc(nbytes, stream)
        else:
            pointer = manager.malloc_aligned(nbytes, alignment, stream)
        buffer = Buffer(manager, pointer, nbytes)
        buffer._shape = shape  # noqa: SLF001 - unset unless needed, so that `allocate` does not pay for them
        buffer._dtype = parsed  # noqa: SLF001
        return buffer

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
        >>> pool = smartpool.SmartPool("cpu", shareable=True)
        >>> buffer = pool.empty(3, "uint8")
        >>> buffer.memoryview()[:] = b"abc"
        >>> shared = pool.export(buffer)                # give it to another process, and there:
        >>> bytes(smartpool.open_shared(shared).memoryview())
        b'abc'
        """
        if isinstance(buffer, Buffer):
            of = buffer._pool()  # noqa: SLF001 - one idea in two classes
            if any(of is own for own in self.managers):
                return export_buffer(buffer)
        raise SharingError(
            f"expected a Buffer of {self!r}, got {buffer!r}; export a buffer by the pool that made it"
        )

    # ------------------------------------------------------------------ bare memory

    def malloc(self, nbytes: int, stream: Stream = None) -> int:
        """Return the address of `nbytes` bytes on the first device: `AdvancedMemoryPoolManager.malloc`."""
        return self._malloc(nbytes, stream)

    def free(self, pointer: int, stream: Stream = None) -> None:
        """Free what `malloc` returned, on whichever device it is: `AdvancedMemoryPoolManager.free`. O(1)."""
        self._pools.free(pointer, stream)

    # ------------------------------------------------------------------ requests as values

    def allocate_memory(self, request: AllocationRequest) -> AllocationResult:
        """Serve a request; the buffer is the pool's until `deallocate_memory` is told its id.

        A request without a device goes to the one with most free memory. One whose priority is below 0 leaves
        some of it to others, by `AllocationRequest.priority`.

        Raises
        ------
        DeviceNotFoundError
            When `device_id` is not one of this pool's devices.
        OutOfMemoryError
            When the device cannot hold it, or not beside what is to be left to others.
        """
        if not isinstance(request, AllocationRequest):
            raise InvalidRequestError(f"expected an AllocationRequest, got {request!r}")
        pools = self._pools
        manager = pools.roomiest() if request.device_id is None else pools.of(request.device_id)
        if request.priority < 0:
            self._leave_room(manager, request)
        if request.apart is not None and manager.can_sleep:
            pointer = manager.malloc_apart(
                request.apart, request.size, request.stream, request.alignment or 1
            )
        elif request.alignment is None:
            pointer = manager.malloc(request.size, request.stream)
        else:
            pointer = manager.malloc_aligned(request.size, request.alignment, request.stream)
        buffer = Buffer(manager, pointer, request.size)
        allocation_id = self._last_id = next(self._ids)
        self._allocations[allocation_id] = buffer
        return AllocationResult(buffer, allocation_id)

    def _leave_room(self, manager: AdvancedMemoryPoolManager, request: AllocationRequest) -> None:
        """Refuse a request that would take what is left to others. One driver call."""
        available = manager.available_bytes
        left = (1 - self.config.memory_pressure_threshold) * (available + manager.live_bytes)
        if request.size > available - left:
            raise OutOfMemoryError(
                f"expected a priority of at least 0, got {request.priority}: of {format_size(available)} "
                f"that are available on {manager.driver.name}, {format_size(int(left))} stay for others by "
                "memory_pressure_threshold; free something, or ask with priority 0"
            )

    def deallocate_memory(self, allocation_id: int, stream: Stream = None) -> None:
        """Free an allocation; consumers that still hold it through DLPack keep it until they are done.

        Raises
        ------
        DoubleFreeError
            When it was freed already.
        UnknownPointerError
            When the id is not one of this pool's.
        """
        number = as_integer(allocation_id) or 0
        buffer = self._allocations.get(number)
        if buffer is None:
            raise self._bad_id(allocation_id)
        try:
            buffer.free(stream)
        except BufferReleasedError:  # by another thread, or by `Buffer.free`
            raise self._bad_id(number) from None
        finally:
            if buffer.released:
                self._allocations.pop(number, None)

    def _bad_id(self, allocation_id: object) -> DoubleFreeError | UnknownPointerError:
        if 0 < (as_integer(allocation_id) or 0) <= self._last_id:
            return DoubleFreeError(
                f"allocation {allocation_id} was freed already; free every allocation once"
            )
        return UnknownPointerError(
            f"expected the id of an allocation of this pool, got {shown(allocation_id)}; "
            "use the allocation_id that allocate_memory returned"
        )

    # ------------------------------------------------------------------ what others do, by whom

    step = _delegated("_pools", PoolSet.step)
    profile = _delegated("_pools", PoolSet.profile)
    sleep = _delegated("_pools", PoolSet.sleep)
    wake = _delegated("_pools", PoolSet.wake)
    trim = _delegated("_pools", PoolSet.trim)
    memory_map = _delegated("_pools", PoolSet.memory_map)
    check = _delegated("_pools", PoolSet.check)
    start_tracking = _delegated("_pools", PoolSet.start_tracking)
    stop_tracking = _delegated("_pools", PoolSet.stop_tracking)
    reset_peaks = _delegated("_pools", PoolSet.reset_peaks)
    add_out_of_memory_callback = _delegated("_pools", PoolSet.add_out_of_memory_callback)
    remove_out_of_memory_callback = _delegated("_pools", PoolSet.remove_out_of_memory_callback)
    optimize_memory = _delegated("_maintenance", Maintenance.optimize_memory)
    save_profile = _delegated("_maintenance", Maintenance.save_profile)
    add_pressure_callback = _delegated("_maintenance", Maintenance.add_pressure_callback)
    remove_pressure_callback = _delegated("_maintenance", Maintenance.remove_pressure_callback)

    def close(self) -> None:
        """Refuse requests from now on. Memory goes back once nothing is live. Idempotent.

        Raises
        ------
        DriverError
            When a device did not take its memory back. The other devices are closed; call it again.
        MemoryCorruptionError
            In debug mode, when a block was overwritten. All devices are closed.
        """
        if not self._pools.closed:
            self._pools.closed = True
            self._maintenance.stop()
            allocations, self._allocations = self._allocations, {}
            allocations.clear()
        self._pools.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._pools.closed

    # ------------------------------------------------------------------ graphs

    @scoped
    def capture(
        self, stream: object, *, memory: GraphMemory | None = None, device_id: int = 0
    ) -> Iterator[GraphMemory]:
        """Serve what a capture of `stream` requests from memory that stays the graph's.

        Begin and end the capture inside of the block: the device is waited for on entry, and most of what
        a pool does is put off until the exit. Requests on `stream`, and on streams that joined its capture,
        get addresses that nobody else is given before the memory is closed, however often they are freed;
        inside the capture they are reused. Requests on other streams go on as ever.

        What is yielded is what the graph holds: close it when the graph is gone. If the block raises and the
        memory is new, it is closed at once, as there is no graph.

        Parameters
        ----------
        stream
            The stream that will be captured: a handle, or an object with ``__cuda_stream__``.
        memory
            Memory of an earlier capture, to be reused by this one: for graphs that are launched one after
            the other, never side by side.
        device_id
            Number of the device in this pool.

        Raises
        ------
        CaptureError
            When the stream is being captured already, or is the default stream; when another capture or a
            planned step is under way on the device; when `memory` is closed or of another device.

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
        manager = self._pools.of(device_id)
        handle = manager.driver.stream(stream)
        held = GraphMemory(manager) if memory is None else memory
        manager.begin_capture(held, handle)
        try:
            yield held
        except BaseException:
            manager.end_capture()
            if memory is None:
                held.close()
            raise
        manager.end_capture()

    # ------------------------------------------------------------------ statistics

    @property
    def statistics(self) -> PoolStatistics:
        """A frozen snapshot over all devices. O(live blocks), whatever was recorded.

        Its `reduction` is the one that `measured_reduction` found last.
        """
        upkeep = self._maintenance
        return PoolStatistics(
            devices=tuple(manager.snapshot() for manager in self.managers),
            target_reduction=self.config.target_fragmentation_reduction,
            reduction=None if self._recording is None else self._recording.reduction,
            optimizations=upkeep.optimizations,
            memory_freed_bytes=upkeep.memory_freed_bytes,
            background_passes=upkeep.background.passes,
            background_running=upkeep.background.running,
            background_error=upkeep.background.error,
        )

    def get_statistics(self) -> dict[str, Any]:
        """Return `statistics` in plain dictionaries; `docs/statistics.md` describes every key."""
        return self.statistics.as_dict()

    def recommendations(self) -> tuple[Any, ...]:
        """Return what ``smartpool.recommendations.recommend(pool)`` does; deprecated, call that."""
        warnings.warn(
            "SmartPool.recommendations() goes in the next release; call "
            "smartpool.recommendations.recommend(pool)",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module("smartpool.recommendations")  # it stands above the pool
        found: tuple[Any, ...] = module.recommend(self)
        return found

    @scoped
    def tag(self, name: str) -> Iterator[None]:
        """Name what requests in a block, or in a function as a decorator, are for; the innermost tag counts.

        It follows threads and tasks as context variables do, holds for all pools, and costs requests
        nothing unless `start_tracking` was called. Use few different names: figures are kept for each.
        """
        with tagged(name):
            yield

    def serve(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        password: str | None = None,
        names: str | Iterable[str] = (),
    ) -> LiveServer:
        """Serve a web page that shows this pool's memory as it changes; close what this returns to end it.

        The page costs nothing while nobody looks. See `docs/live.md`.

        Parameters
        ----------
        port
            The port to listen on; 0 for one that is free. The returned server has its `url`.
        host
            The address to listen on. Anything but loopback shows the program's memory to the network.
        password
            What the browser asks for. Without one, every user of this machine may look.
        names
            Further names under which a browser may reach this server, such as the machine's.

        Raises
        ------
        InvalidRequestError
            When the address cannot be used.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool, pool.serve() as server:
        ...     print(server.url)
        http://127.0.0.1:.../
        """
        from smartpool.live import serve  # noqa: PLC0415 - a web server, for those who want one

        self._pools.require_open()
        return serve(self, port=port, host=host, password=password, names=names)

    # ------------------------------------------------------------------ recordings

    def start_recording(self) -> None:
        """Record every request and free from now on. A recording that is on goes on."""
        self._pools.require_open()
        if self._recording is None:
            from smartpool.trace.recording import PoolRecording  # noqa: PLC0415 - for those who record

            self.__dict__.setdefault("_recording", PoolRecording(self.managers))
        cast("PoolRecording", self._recording).start()

    def stop_recording(self) -> Trace | None:
        """End the recording and return the trace of all devices, or None when none was on.

        What was recorded is forgotten: call `measured_reduction` before.
        """
        trace = self.recording()
        if self._recording is not None:
            self._recording.stop()
        return trace

    def recording(self, device_id: int | None = None) -> Trace | None:
        """Return what was recorded so far, or None when no recording is on.

        Parameters
        ----------
        device_id
            Number of the device in this pool; None for all of them in one trace, by time, in which each
            device has streams of its own.
        """
        self._pools.require_ours()
        number = None if device_id is None else self._pools.number_of(device_id)
        return None if self._recording is None else self._recording.trace(number)

    def measured_reduction(self) -> Reduction | None:
        """Compare the fragmentation of the recorded run with that of PyTorch's caching allocator.

        What was recorded, on all devices, is replayed on a model of that allocator; what was live before the
        recording counts on both sides. The result is kept until something new is recorded, and `statistics`
        shows it. Some 3 us a recorded event; None when nothing was ever recorded.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:8GiB", record=True) as pool:
        ...     held = [pool.malloc(3 * smartpool.MiB + 512 * step) for step in range(100)]
        ...     pool.measured_reduction().events, pool.statistics.target_achieved
        (100, True)
        """
        self._pools.require_ours()
        return None if self._recording is None else self._recording.measure()


def _named(name: str, method: Any) -> Any:
    """Return a bound method under another name, which errors about its arguments then tell."""
    own = method.__func__
    made = FunctionType(own.__code__, own.__globals__, name, own.__defaults__, own.__closure__)
    made.__qualname__, made.__doc__, made.__annotations__ = name, own.__doc__, own.__annotations__
    return MethodType(made, method.__self__)
