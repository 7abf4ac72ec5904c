"""What `cpu` and `model` share: the whole protocol, above a dozen hooks that do the physical part.

Each call: count it, let a scripted fault fail it, validate and book it, act, and un-book it when
acting failed. One lock is held all the while; blocking calls let go of it as they wait. What is
given back is off the books before it goes, and comes back to them only when the device says that
it failed: an interrupt may have come after the deed, and a leak is better than a stale entry.

Work on a stream is checked twice, as on a real device: when it is queued (a wrong argument is
refused and nothing is queued) and when it is done. If the memory was unmapped or freed in
between, the device is lost with ``ILLEGAL_ADDRESS``: the pool above failed to wait for an event.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from smartpool.copying import not_copied
from smartpool.driver.bookkeeping import AddressBook, Mapping
from smartpool.driver.footprint import Footprint
from smartpool.driver.host_streams import HostStreams
from smartpool.driver.protocol import MappedRange, MemoryInfo, refusal
from smartpool.errors import DriverError, DriverOutOfMemoryError, UnsupportedError

__all__ = ["HostDriver"]


class HostDriver(HostStreams):
    """A driver whose device is this process."""

    __reduce_ex__ = not_copied

    def __init__(self, name: str, dl_device: tuple[int, int], granularity: int, footprint: Footprint) -> None:
        super().__init__(name)
        self.dl_device = dl_device
        self.granularity = granularity
        self._book = AddressBook(granularity, footprint)
        self._footprint = footprint
        self._host: dict[int, int] = {}  # address of pinned memory -> bytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self._footprint.held} bytes held>"

    # --- raw memory ---

    def memory_info(self) -> MemoryInfo:
        """Return free and total physical bytes."""
        with self._lock:
            self._count("memory_info")
            return self._memory_info(self._book.footprint.free)

    def allocate(self, size: int) -> int:
        """Return the address of `size` fresh bytes."""
        with self._lock:
            self._count("allocate", size=size)
            self._book.check_size("allocate", size)
            self._refuse_when_closed("allocate", size=size)
            footprint = self._book.footprint
            growth = footprint.growth(size)
            if growth > footprint.free:
                raise self._out_of_memory("allocate", size)
            address = self._allocate(size, growth)
            self._book.add_raw(address, size)
            return address

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        with self._lock:
            self._count("free", address=address)
            footprint = self._book.footprint
            held = footprint.held
            size = self._book.remove_raw(address)
            try:
                self._free(address, size, held - footprint.held)
            except DriverError:
                self._book.add_raw(address, size)
                raise
            self._finish_closing()

    # --- memory of the host ---

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` bytes of the host."""
        with self._lock:
            self._count("allocate_host", size=size)
            self._book.check_size("allocate_host", size)
            self._refuse_when_closed("allocate_host", size=size)
            address = self._allocate_host(size)
            self._host[address] = size
            return address

    def free_host(self, address: int) -> None:
        """Give back what `allocate_host` returned."""
        with self._lock:
            self._count("free_host", address=address)
            size = self._host.pop(address, None)
            if size is None:
                raise refusal("free_host", "pass what allocate_host returned, once", address=address)
            self._free_host(address, size)

    def copy_to_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes into pinned memory."""
        self._copy_by_host("copy_to_host", destination, source, size, stream, here=source, there=destination)

    def copy_from_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes of pinned memory."""
        self._copy_by_host(
            "copy_from_host", destination, source, size, stream, here=destination, there=source
        )

    def _copy_by_host(
        self, call: str, destination: int, source: int, size: int, stream: int, *, here: int, there: int
    ) -> None:
        with self._lock:
            self._begin(call, destination=destination, source=source, size=size, stream=stream)
            self._book.check_touch(call, here, size)
            if not any(start <= there and there + size <= start + n for start, n in self._host.items()):
                advice = "expected bytes of memory from allocate_host"
                raise refusal(call, advice, destination=destination, source=source, size=size)
            if self._queues.is_idle(stream):
                self._copy(destination, source, size)
            else:
                work = self._checked(call, lambda: self._copy(destination, source, size), (here,), size)
                self._queues.submit(stream, work)

    # --- virtual memory ---

    def reserve(self, size: int) -> int:
        """Return the base of a fresh range of addresses with no memory behind them."""
        with self._lock:
            self._begin_virtual("reserve", size=size)
            self._book.check_granular("reserve", size)
            self._refuse_when_closed("reserve", size=size)
            address = self._reserve(size)
            self._book.add_reservation(address, size)
            return address

    def unreserve(self, address: int, size: int) -> None:
        """Give back a whole reservation in which nothing is mapped."""
        with self._lock:
            self._begin_virtual("unreserve", address=address, size=size)
            self._book.remove_reservation(address, size)
            try:
                self._unreserve(address, size)
            except DriverError:
                self._book.add_reservation(address, size)
                raise
            self._finish_closing()

    def create_chunk(self, size: int) -> int:
        """Return a handle of physical memory, mapped nowhere."""
        with self._lock:
            self._begin_virtual("create_chunk", size=size)
            self._book.check_granular("create_chunk", size)
            self._refuse_when_closed("create_chunk", size=size)
            if size > self._book.footprint.free:
                raise self._out_of_memory("create_chunk", size)
            handle = self._create_chunk(size)
            self._book.add_chunk(handle, size)
            return handle

    def release_chunk(self, chunk: int) -> None:
        """Give the memory of a chunk that is mapped nowhere back."""
        with self._lock:
            self._begin_virtual("release_chunk", chunk=chunk)
            size = self._book.remove_chunk(chunk)
            try:
                self._release_chunk(chunk, size)
            except DriverError:
                self._book.add_chunk(chunk, size)
                raise
            self._finish_closing()

    def map_chunk(self, address: int, chunk: int) -> None:
        """Map the whole chunk at `address`."""
        with self._lock:
            self._begin_virtual("map_chunk", address=address, chunk=chunk)
            mapping = self._book.map(address, chunk)
            try:
                self._map(mapping)
            except BaseException:
                self._book.drop(mapping)
                raise

    def enable_access(self, address: int, size: int) -> None:
        """Let this device read and write the range, which must be mapped all over."""
        with self._lock:
            self._begin_virtual("enable_access", address=address, size=size)
            mappings = self._book.enable_access(address, size)
            self._enable_access(address, size, mappings)
            for mapping in mappings:
                mapping.accessible = True

    def unmap(self, address: int, size: int) -> None:
        """Unmap all chunks mapped in the range."""
        with self._lock:
            self._begin_virtual("unmap", address=address, size=size)
            mappings = self._book.unmap(address, size)
            try:
                self._unmap(address, size, mappings)
            except DriverError:
                self._book.restore(mappings)
                raise

    def mapped(self, address: int, size: int) -> list[MappedRange]:
        """Return what is mapped in [address, address + size), in order."""
        with self._lock:
            return self._book.mapped(address, size)

    # --- chunks of several processes ---

    def share_chunks(self) -> None:
        """Make chunks that are created from now on exportable."""
        with self._lock:
            self._begin_virtual("share_chunks")
            self._share_chunks()

    def export_chunk(self, chunk: int) -> int:
        """Return a new file descriptor for a chunk; the caller closes it."""
        with self._lock:
            self._begin_virtual("export_chunk", chunk=chunk)
            self._book.check_chunk("export_chunk", chunk)
            return self._export_chunk(chunk)

    def import_chunk(self, descriptor: int, size: int) -> int:
        """Return a handle of the chunk behind a file descriptor, which stays the caller's."""
        with self._lock:
            self._begin_virtual("import_chunk", descriptor=descriptor, size=size)
            self._book.check_granular("import_chunk", size)
            self._refuse_when_closed("import_chunk", size=size)
            handle = self._import_chunk(descriptor, size)
            self._book.add_chunk(handle, size)
            return handle

    # --- data ---

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Queue on `stream`: set `size` bytes to `value`."""
        with self._lock:
            self._begin("fill", address=address, value=value, size=size, stream=stream)
            if not 0 <= value <= 255:
                raise refusal("fill", "expected a value in 0..255", address=address, value=value)
            self._book.check_touch("fill", address, size)
            if self._queues.is_idle(stream):
                self._fill(address, value, size)
            else:
                work = self._checked("fill", lambda: self._fill(address, value, size), (address,), size)
                self._queues.submit(stream, work)

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes that do not overlap."""
        with self._lock:
            self._begin("copy", destination=destination, source=source, size=size, stream=stream)
            self._book.check_touch("copy", destination, size)
            self._book.check_touch("copy", source, size)
            if abs(destination - source) < size:
                raise refusal("copy", "the ranges overlap", destination=destination, source=source, size=size)
            if self._queues.is_idle(stream):
                self._copy(destination, source, size)
            else:
                work = self._checked(
                    "copy", lambda: self._copy(destination, source, size), (destination, source), size
                )
                self._queues.submit(stream, work)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes after all queued work is done."""
        with self._lock:
            self._begin("read", address=address, size=size)
            self._book.check_touch("read", address, size)
            self._queues.wait_idle(None)
            self._book.check_touch("read", address, size)
            return self._read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address` after all queued work is done."""
        with self._lock:
            self._begin("write", address=address, size=len(data))
            self._book.check_touch("write", address, len(data))
            self._queues.wait_idle(None)
            self._book.check_touch("write", address, len(data))
            self._write(address, data)

    # --- life ---

    def close(self) -> None:
        """Take no new memory, streams or events; what callers hold stays theirs. Idempotent."""
        with self._lock:
            self._closed = True
            self._finish_closing()

    def held(self) -> dict[str, int]:
        """Return how much of everything callers hold now. All zeros: nothing leaked."""
        with self._lock:
            return {**self._book.describe(), "host_bytes": sum(self._host.values())}

    def check(self) -> None:
        """Raise `InvariantError` unless book, footprint and queues are sound."""
        with self._lock:
            self._book.check()
            self._queues.check()

    # --- what a device does ---

    @abstractmethod
    def _memory_info(self, free: int) -> MemoryInfo: ...
    @abstractmethod
    def _allocate(self, size: int, growth: int) -> int: ...
    @abstractmethod
    def _free(self, address: int, size: int, freed: int) -> None: ...
    @abstractmethod
    def _allocate_host(self, size: int) -> int: ...
    @abstractmethod
    def _free_host(self, address: int, size: int) -> None: ...
    @abstractmethod
    def _reserve(self, size: int) -> int: ...
    @abstractmethod
    def _unreserve(self, address: int, size: int) -> None: ...
    @abstractmethod
    def _create_chunk(self, size: int) -> int: ...
    @abstractmethod
    def _release_chunk(self, handle: int, size: int) -> None: ...
    @abstractmethod
    def _map(self, mapping: Mapping) -> None: ...
    @abstractmethod
    def _enable_access(self, address: int, size: int, mappings: list[Mapping]) -> None: ...
    @abstractmethod
    def _unmap(self, address: int, size: int, mappings: list[Mapping]) -> None: ...
    @abstractmethod
    def _share_chunks(self) -> None: ...
    @abstractmethod
    def _export_chunk(self, handle: int) -> int: ...
    @abstractmethod
    def _import_chunk(self, descriptor: int, size: int) -> int: ...
    @abstractmethod
    def _fill(self, address: int, value: int, size: int) -> None: ...
    @abstractmethod
    def _copy(self, destination: int, source: int, size: int) -> None: ...
    @abstractmethod
    def _read(self, address: int, size: int) -> bytes: ...
    @abstractmethod
    def _write(self, address: int, data: bytes) -> None: ...

    @abstractmethod
    def _last_given_back(self) -> None:
        """Release what the driver holds: it is closed, and callers hold nothing any more. Repeatable."""

    # --- inside ---

    def _begin_virtual(self, call: str, **arguments: int) -> None:
        """Count the call and let it fail: for want of virtual memory, or as a fault says."""
        self.calls[call] += 1
        if not self.granularity:
            raise UnsupportedError(
                f"{call}: {self.name} has no virtual memory on this platform; use raw allocations, "
                "or the model device"
            )
        if self.faults.alert:  # written out: each mapped chunk comes by here three times
            self.faults.check(call, **arguments)

    def _out_of_memory(self, call: str, size: int) -> DriverOutOfMemoryError:
        advice = f"{self._footprint.free} of {self._footprint.capacity} bytes are free"
        return DriverOutOfMemoryError(call, "OUT_OF_MEMORY", {"size": size}, advice=advice)

    def _checked(
        self, call: str, work: Callable[[], None], addresses: tuple[int, ...], size: int
    ) -> Callable[[], None]:
        """Return work that loses the device when its memory has gone by the time it is done."""

        def run() -> None:
            if self.faults.lost is not None:
                return
            if all(self._book.touchable(address, size) for address in addresses):
                work()
            else:
                shown = ", ".join(hex(address) for address in addresses)
                self.faults.lose(f"ILLEGAL_ADDRESS (in a queued {call} of {size} bytes at {shown})")

        return run

    def _finish_closing(self) -> None:
        if self._closed and self._book.is_empty:
            self._last_given_back()
