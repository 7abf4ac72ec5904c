"""What a pool tells of itself: statistics and recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpool.config import SmartPoolConfig
from smartpool.faces.devices import DevicePool
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.memory_map import MemoryMap
from smartpool.pool.statistics import PoolStatistics
from smartpool.recording import PoolRecording

if TYPE_CHECKING:
    from smartpool.live.server import LiveServer
    from smartpool.trace.trace import Trace

__all__ = ["WatchingFace"]


class WatchingFace(DevicePool):
    """Statistics, and recordings of every request."""

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...], config: SmartPoolConfig) -> None:
        super().__init__(managers, config)
        self._recording = PoolRecording(managers)

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
        names: tuple[str, ...] = (),
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
