"""What a pool tells of itself: statistics, tags and scopes, the memory map, recordings."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from smartpool.config import SmartPoolConfig
from smartpool.errors import DeviceNotFoundError, InvalidRequestError
from smartpool.faces.devices import DevicePool
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.telemetry.hooks import Hooks
from smartpool.pool.telemetry.labels import tagged
from smartpool.pool.telemetry.memory_map import MemoryMap
from smartpool.pool.telemetry.statistics import PoolStatistics, Reduction
from smartpool.pool.telemetry.tracked import ProfileRecord
from smartpool.pool.telemetry.tracking import Scope
from smartpool.pool.telemetry.watched import WatchedPool
from smartpool.recording import PoolRecording
from smartpool.scopes import holds, scoped
from smartpool.values import as_integer, encodable, shown

if TYPE_CHECKING:
    from smartpool.live.server import LiveServer
    from smartpool.trace.trace import Trace

__all__ = ["Profile", "WatchingFace"]


_path: Final[ContextVar[tuple[str, ...]]] = ContextVar("smartpool.scopes", default=())


class Profile:
    """One stay in a scope; see `SmartPool.profile`."""

    __slots__ = ("_entered",)

    def __init__(self, entered: list[tuple[WatchedPool, Scope]]) -> None:
        self._entered = entered

    def record(self, device_id: int = 0) -> ProfileRecord:
        """Return what happened on a device, up to the end of the scope or to now."""
        number = as_integer(device_id)
        if number is None or not 0 <= number < len(self._entered):
            raise DeviceNotFoundError(
                f"device_id: expected an integer from 0 to {len(self._entered) - 1}, got {shown(device_id)}"
            )
        manager, scope = self._entered[number]
        manager.settle()
        return scope.record


class WatchingFace(DevicePool):
    """Statistics, the memory map, and recordings of every request."""

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...], config: SmartPoolConfig) -> None:
        super().__init__(managers, config)
        self._recording = PoolRecording(managers)
        self.hooks = Hooks(managers)
        for manager in managers:
            manager.use_hooks(self.hooks)

    @property
    def statistics(self) -> PoolStatistics:
        """A frozen snapshot over all devices. O(live blocks), whatever was recorded.

        Its `reduction` is the one that `measured_reduction` found last.
        """
        return PoolStatistics(
            devices=tuple(manager.snapshot() for manager in self.managers),
            target_reduction=self.config.target_fragmentation_reduction,
            reduction=self._recording.reduction,
            optimizations=self._optimizations,
            memory_freed_bytes=self._memory_freed_bytes,
            background_passes=self._background.passes,
            background_running=self._background.running,
            background_error=self._background.error,
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
        self._require_ours()
        return self._recording.measure()

    # ------------------------------------------------------------------ tracking

    def start_tracking(self, *, stack_depth: int = 0) -> None:
        """Keep exact statistics of every request from now on: by tier, stream, tag and scope.

        Parameters
        ----------
        stack_depth
            Frames of the Python stack that are recorded with each block; 0 for none.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     pool.start_tracking()
        ...     with pool.tag("weights"):
        ...         weights = pool.allocate(3000)
        ...     pool.statistics.devices[0].tracked.tags["weights"].current_bytes
        3000
        """
        self._require_open()
        depth = as_integer(stack_depth)
        if depth is None or depth < 0:
            raise InvalidRequestError(f"stack_depth: expected a number of frames, got {shown(stack_depth)}")
        for manager in self.managers:
            manager.start_tracking(stack_depth=depth)

    def stop_tracking(self) -> None:
        """Keep statistics of requests no more, and forget them."""
        for manager in self.managers:
            manager.stop_tracking()

    def reset_peaks(self) -> None:
        """Let tracked peaks begin anew, at what is live now."""
        for manager in self.managers:
            tracker = manager.tracker  # another thread may end it
            if tracker is not None:
                tracker.reset_peaks()

    @scoped
    def tag(self, name: str) -> Iterator[None]:
        """Name what requests in a block, or in a function as a decorator, are for; the innermost tag counts.

        It follows threads and tasks as context variables do, holds for all pools, and costs requests
        nothing unless `start_tracking` was called. Use few different names: figures are kept for each.
        """
        with tagged(name):
            yield

    @scoped
    def profile(self, name: str) -> Iterator[Profile]:
        """Keep statistics of what happens in a block, or in a function as a decorator.

        Scopes nest: one inside of another is named ``outer/inner``. Requests of all threads count.
        Tracking begins with the first scope. `statistics` sums up over all the times that a scope was
        entered; what is returned tells of this time.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     with pool.profile("forward") as scope:
        ...         pool.free(pool.malloc(3000))
        ...     scope.record().memory_peak
        3000
        """
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(f"name: expected the name of a scope, got {name!r}")
        self._require_open()
        path = (*_path.get(), encodable(name))
        entered: list[tuple[WatchedPool, Scope]] = []
        with holds(_path, path), ExitStack() as left:
            for manager in self.managers:
                entered.append((manager, manager.enter_scope("/".join(path))))
                left.callback(manager.leave_scope, entered[-1][1])
            yield Profile(entered)

    # ------------------------------------------------------------------ the memory map

    def memory_map(self, device_id: int = 0) -> MemoryMap:
        """Return what every byte that the pool holds on a device is, by address.

        Requests go on meanwhile: only dictionaries are copied under the pool's lock. O(n log n).

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     held = pool.malloc(5000)
        ...     pool.memory_map().blocks.requested_bytes
        [5000]
        """
        return self._manager_of(device_id).memory_map()

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

        self._require_open()
        return serve(self, port=port, host=host, password=password, names=names)

    # ------------------------------------------------------------------ recordings

    def start_recording(self) -> None:
        """Record every request and free from now on. A recording that is on goes on."""
        self._require_open()
        self._recording.start()

    def stop_recording(self) -> Trace | None:
        """End the recording and return the trace of all devices, or None when none was on.

        What was recorded is forgotten: call `measured_reduction` before.
        """
        trace = self.recording()
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
        self._require_ours()
        return self._recording.trace(None if device_id is None else self._number_of(device_id))
