"""How much physical memory one pool holds on one device, under its cap; and its raw segments.

Invariants::

    reserved_bytes == bytes of chunks and raw segments that the driver has not been given back
    reserved_bytes <= cap_bytes
    peak_reserved_bytes is the largest reserved_bytes ever was, exactly
"""

from __future__ import annotations

from collections.abc import Callable

from smartpool.driver.protocol import Driver
from smartpool.driver.returning import Returning
from smartpool.errors import DriverOutOfMemoryError

__all__ = ["DeviceMemory"]


class DeviceMemory:
    """Physical bytes on one device: sums, and raw segments. The pool's lock guards it.

    Chunks are in the books of their mappings (`smartpool.heap.mappings`), which count them here.

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
        self._peak = 0  # before memory was given back the last time
        self._segments: dict[int, int] = {}  # address of a raw segment -> bytes
        self._unwanted: set[int] = set()  # raw segments to be given back when that is possible
        self._return = Returning()
        self.on_change: Callable[[str, int, int, int], None] | None = None  # told what was mapped where
        self.held: list[Callable[[], int]] = []  # the bytes of chunks in each book of them
        self.apart: set[int] = set()  # raw segments that are none of the heap's

    def __repr__(self) -> str:
        return f"<DeviceMemory on {self.driver.name}: {self.reserved_bytes} of {self.cap_bytes} bytes>"

    @property
    def room_bytes(self) -> int:
        """What the cap still allows. The device itself may hold less."""
        return self.cap_bytes - self.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that was reserved so far."""
        return max(self._peak, self.reserved_bytes)

    def gave_back(self, size: int) -> None:
        """Count `size` bytes less. Whoever takes some counts them in `reserved_bytes`."""
        self._peak = self.peak_reserved_bytes
        self.reserved_bytes -= size

    def check_room(self, call: str, size: int, *, of_device: bool = False) -> None:
        """Raise `DriverOutOfMemoryError` when the cap, or `of_device`, cannot hold `size` bytes more."""
        if size > self.cap_bytes - self.reserved_bytes:
            raise DriverOutOfMemoryError(
                call,
                "CAP_REACHED" if self.limited else "OUT_OF_MEMORY",
                {"size": size, "reserved": self.reserved_bytes, "cap": self.cap_bytes},
                advice=f"the pool holds {'its limit' if self.limited else 'the whole device'}",
            )
        if of_device and size > (free := self.driver.memory_info().free):
            raise DriverOutOfMemoryError(call, "OUT_OF_MEMORY", {"size": size, "free": free})

    def recount(self) -> None:
        """Sum up anew, after an exception in the middle of a call."""
        self._peak = self.peak_reserved_bytes
        self.reserved_bytes = sum([held() for held in self.held]) + sum(self._segments.values())

    # ------------------------------------------------------------------ raw segments

    def allocate_segment(self, size: int) -> int:
        """Return the address of a new raw segment."""
        self.check_room("allocate", size)
        address = self.driver.allocate(size)
        self._segments[address] = size
        self.reserved_bytes += size
        self.tell("map", address, size)
        return address

    def free_segment(self, address: int) -> None:
        """Give a raw segment back to the device, unless it went already and an interrupt followed."""
        if address not in self._segments:
            return
        self._return(self.driver.free, address)
        size = self._segments.pop(address)
        self.gave_back(size)
        self._return.done(address)
        self.tell("unmap", address, size)

    def release_segment(self, address: int) -> None:
        """Give a raw segment back; when the driver refuses, `release_unwanted` tries again."""
        self._unwanted.add(address)
        self.release_unwanted()

    def release_unwanted(self) -> None:
        """Give the raw segments back that nobody wants any more."""
        for address in list(self._unwanted):
            self.free_segment(address)
            self._unwanted.remove(address)

    def tell(self, what: str, address: int, size: int) -> None:
        """Tell whoever watches that memory came (``"map"``) or went (``"unmap"``). It does not raise."""
        if self.on_change is not None:
            self.on_change(what, address, size, self.reserved_bytes)

    def segments(self) -> dict[int, int]:
        """Return address to bytes of the raw segments."""
        return self._segments.copy()

    def mend_segments(self, wanted: set[int]) -> None:
        """Let the raw segments go that are not `wanted`, after an exception; those apart stay."""
        self._unwanted = self._segments.keys() - wanted - self.apart
