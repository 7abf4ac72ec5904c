"""The physical memory that one pool holds on one device: its budget, and where each chunk is.

Invariants::

    reserved_bytes == bytes of chunks mapped in arenas + spare chunks + raw segments
    reserved_bytes <= cap_bytes
    peak_reserved_bytes is the largest reserved_bytes ever was, exactly
"""

from __future__ import annotations

from collections import Counter

from smartpool.driver.protocol import Driver
from smartpool.errors import DriverOutOfMemoryError

__all__ = ["DeviceMemory"]


class DeviceMemory:
    """Physical bytes on one device, by chunk or by raw segment, under a cap. The pool's lock guards it.

    Parameters
    ----------
    driver
        The device.
    cap_bytes
        The most that this pool may hold.

    Attributes
    ----------
    aliases
        Chunk handle to the number of its retired mappings; only what is mapped nowhere is released.
    """

    def __init__(self, driver: Driver, cap_bytes: int) -> None:
        self.driver = driver
        self.cap_bytes = cap_bytes
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.aliases: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}  # chunk handle or segment address -> bytes
        self._unwanted: set[int] = set()

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
        self._hold(chunk, size)
        return chunk

    def release_chunk(self, chunk: int) -> None:
        """Give a chunk back to the device: now, or when its last retired mapping is gone.

        A failing release keeps the chunk and its bytes on the books; `release_unwanted` tries again.
        """
        self._unwanted.add(chunk)
        self.release_unwanted()

    def unalias(self, chunk: int) -> None:
        """Book that one retired mapping of `chunk` was unmapped."""
        self.aliases[chunk] -= 1
        if not self.aliases[chunk]:
            del self.aliases[chunk]

    def release_unwanted(self) -> None:
        """Release the chunks that nobody wants any more and that are mapped nowhere."""
        for chunk in list(self._unwanted):
            if not self.aliases.get(chunk):
                self.driver.release_chunk(chunk)
                self._unwanted.remove(chunk)
                self.reserved_bytes -= self._sizes.pop(chunk)

    def allocate_segment(self, size: int) -> int:
        """Return the address of a new raw segment."""
        self._check_cap("allocate", size)
        address = self.driver.allocate(size)
        self._hold(address, size)
        return address

    def free_segment(self, address: int) -> None:
        """Give a raw segment back to the device."""
        self.driver.free(address)
        self.reserved_bytes -= self._sizes.pop(address)

    def _hold(self, key: int, size: int) -> None:
        self._sizes[key] = size
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _check_cap(self, call: str, size: int) -> None:
        if size > self.room_bytes:
            raise DriverOutOfMemoryError(
                call,
                "CAP_REACHED",
                {"size": size, "reserved": self.reserved_bytes, "cap": self.cap_bytes},
                advice="the pool's own limit (max_bytes) is reached",
            )
