"""The physical memory that one pool holds on one device, under its cap.

Invariants::

    reserved_bytes == bytes of chunks and raw segments that the driver has not been given back
    reserved_bytes <= cap_bytes
    peak_reserved_bytes is the largest reserved_bytes ever was, exactly
"""

from __future__ import annotations

from collections.abc import Callable

from smartpool.driver.protocol import Driver
from smartpool.errors import DriverError, DriverOutOfMemoryError
from smartpool.pool.heap.returning import Returning

__all__ = ["DeviceMemory"]


class DeviceMemory:
    """Physical bytes on one device, by chunk or by raw segment. The pool's lock guards it.

    Parameters
    ----------
    driver
        The device.
    cap_bytes
        The most that this pool may hold.
    limited
        Whether the pool was given that limit; else it is all that the device has.
    """

    def __init__(self, driver: Driver, cap_bytes: int, *, limited: bool = True) -> None:
        self.driver = driver
        self.cap_bytes = cap_bytes
        self.limited = limited
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self._sizes: dict[int, int] = {}  # chunk handle -> bytes
        self._segments: dict[int, int] = {}  # address of a raw segment -> bytes
        self._unwanted: set[int] = set()  # chunks and segments to be released when that is possible
        self._return = Returning()
        self.on_change: Callable[[str, int, int, int], None] | None = None  # told what was mapped where
        self._pinned: set[int] = set()  # chunks with a mapping that could not be undone yet
        self.apart: set[int] = set()  # raw segments that are none of the heap's

    def __repr__(self) -> str:
        return f"<DeviceMemory on {self.driver.name}: {self.reserved_bytes} of {self.cap_bytes} bytes>"

    @property
    def room_bytes(self) -> int:
        """What the cap still allows. The device itself may hold less."""
        return self.cap_bytes - self.reserved_bytes

    def create_chunk(self, size: int) -> int:
        """Return a new chunk's handle; `DriverOutOfMemoryError` when cap or device cannot hold it."""
        self._check_cap("create_chunk", size)
        chunk = self.driver.create_chunk(size)
        self._sizes[chunk] = size
        self._hold(size)
        return chunk

    def release_chunk(self, chunk: int) -> None:
        """Give a chunk that is mapped nowhere back to the device.

        When the driver refuses, the chunk stays on the books, and `release_unwanted` tries again.
        """
        self._unwanted.add(chunk)
        self.release_unwanted()

    def abandon_chunk(self, chunk: int) -> None:
        """Release a chunk while another failure is under way: what fails here is tried again later."""
        try:
            self.release_chunk(chunk)
        except DriverError:
            return  # on the books as unwanted

    def release_unwanted(self) -> None:
        """Release the chunks and segments that nobody wants any more, except pinned ones."""
        for unwanted in self._unwanted - self._pinned:
            if unwanted in self._segments:
                self.free_segment(unwanted)
            else:
                self._return(self.driver.release_chunk, unwanted)
                self.reserved_bytes -= self._sizes.pop(unwanted)
                self._return.done(unwanted)
            self._unwanted.remove(unwanted)

    def pin(self, chunk: int) -> None:
        """Book that a mapping of `chunk` could not be undone: the chunk cannot be released."""
        self._pinned.add(chunk)

    def unpin(self, chunk: int) -> None:
        """Book that the mapping is gone."""
        self._pinned.discard(chunk)

    def allocate_segment(self, size: int) -> int:
        """Return the address of a new raw segment."""
        self._check_cap("allocate", size)
        address = self.driver.allocate(size)
        self._segments[address] = size
        self._hold(size)
        self.tell("map", address, size)
        return address

    def free_segment(self, address: int) -> None:
        """Give a raw segment back to the device, unless it went already and an interrupt followed."""
        if address not in self._segments:
            return
        self._return(self.driver.free, address)
        size = self._segments.pop(address)
        self.reserved_bytes -= size
        self._return.done(address)
        self.tell("unmap", address, size)

    def release_segment(self, address: int) -> None:
        """Give a raw segment back; when the driver refuses, `release_unwanted` tries again."""
        self._unwanted.add(address)
        self.release_unwanted()

    def tell(self, what: str, address: int, size: int) -> None:
        """Tell whoever watches that memory came (``"map"``) or went (``"unmap"``). It does not raise."""
        if self.on_change is not None:
            self.on_change(what, address, size, self.reserved_bytes)

    def segments(self) -> dict[int, int]:
        """Return address to bytes of the raw segments."""
        return self._segments.copy()

    def wants(self, chunk: int) -> bool:
        """Return whether `chunk` is held, and not to be released."""
        return chunk in self._sizes and chunk not in self._unwanted

    def mend(self, wanted: set[int], pinned: set[int]) -> None:
        """Make the books anew after an exception in the middle.

        Parameters
        ----------
        wanted
            The chunks and segments that are where they belong; the others are not wanted any more.
        pinned
            Chunks of which it is not known whether they are mapped somewhere.
        """
        self._unwanted = (self._sizes.keys() | self._segments.keys()) - wanted - self.apart
        self._pinned = pinned & self._unwanted
        self.reserved_bytes = sum(self._sizes.values()) + sum(self._segments.values())
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def check_room(self, call: str, size: int) -> None:
        """Raise `DriverOutOfMemoryError` when cap or device cannot hold `size` bytes more."""
        self._check_cap(call, size)
        free = self.driver.memory_info().free
        if size > free:
            raise DriverOutOfMemoryError(call, "OUT_OF_MEMORY", {"size": size, "free": free})

    def _hold(self, size: int) -> None:
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _check_cap(self, call: str, size: int) -> None:
        if size > self.room_bytes:
            raise DriverOutOfMemoryError(
                call,
                "CAP_REACHED" if self.limited else "OUT_OF_MEMORY",
                {"size": size, "reserved": self.reserved_bytes, "cap": self.cap_bytes},
                advice=f"the pool holds {'its limit' if self.limited else 'the whole device'}",
            )
