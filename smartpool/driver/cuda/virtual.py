"""Virtual memory of one CUDA device: addresses, chunks, and what is mapped where.

The rules of the protocol are checked in the same book as on the other devices before CUDA is
asked: CUDA accepts some of what the protocol refuses (releasing a chunk that is mapped, enabling
access over a hole) and documents some as undefined (unmapping a part of a mapping). The book
costs 1 to 2 us beside calls of 2 to 60 us, and its lock is never held while the driver works.

Chunks that other processes may open are made with a handle type of their own, which CUDA wants
to know when a chunk is created; `share_chunks` says so for all that are created from then on.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Any

from smartpool.driver.bookkeeping import AddressBook, refusal
from smartpool.driver.cuda.context import Context
from smartpool.driver.protocol import MappedRange
from smartpool.errors import DriverError, UnsupportedError
from smartpool.forks import renewed

__all__ = ["VirtualMemory"]


class VirtualMemory:
    """The virtual-memory calls of the driver protocol, on one context.

    Parameters
    ----------
    context
        The primary context.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.ordinal = context.ordinal
        self.name = f"cuda:{context.ordinal}"
        self._api = context.api
        self._call, self._call_here = context.call, context.call_here
        self._chunk_properties = self._describe_chunks()
        self._access = [self._access_by(self.ordinal)]
        self.granularity = self._find_granularity()
        self._lock = renewed(self, "_lock", threading.Lock)
        self._book = AddressBook(self.granularity)

    # --- addresses ---

    def reserve(self, size: int) -> int:
        """Return the base of a fresh range of addresses with no memory behind them."""
        self._check_granular("reserve", size)
        address = int(self._call("reserve", self._api.cuMemAddressReserve, (size, 0, 0, 0), size=size)[1])
        with self._lock:
            self._book.add_reservation(address, size)
        return address

    def unreserve(self, address: int, size: int) -> None:
        """Give back a whole reservation in which nothing is mapped."""
        self._require_virtual("unreserve")
        with self._lock:
            self._book.remove_reservation(address, size)
        try:
            self._call("unreserve", self._api.cuMemAddressFree, (address, size), address=address, size=size)
        except DriverError:
            with self._lock:
                self._book.add_reservation(address, size)
            raise
        self._finish_closing()

    # --- chunks ---

    def create_chunk(self, size: int) -> int:
        """Return a handle of physical memory, mapped nowhere."""
        self._check_granular("create_chunk", size)
        made = self._call("create_chunk", self._api.cuMemCreate, (size, self._chunk_properties, 0), size=size)
        handle = int(made[1])
        with self._lock:
            self._book.add_chunk(handle, size)
        return handle

    def release_chunk(self, chunk: int) -> None:
        """Give the memory of a chunk that is mapped nowhere back."""
        self._require_virtual("release_chunk")
        with self._lock:
            size = self._book.remove_chunk(chunk)
        try:
            self._call("release_chunk", self._api.cuMemRelease, (chunk,), chunk=chunk)
        except DriverError:
            with self._lock:
                self._book.add_chunk(chunk, size)
            raise
        self._finish_closing()

    def map_chunk(self, address: int, chunk: int) -> None:
        """Map the whole chunk at `address`."""
        self._require_virtual("map_chunk")
        with self._lock:
            mapping = self._book.map(address, chunk)
        try:
            arguments = (address, mapping.size, 0, chunk, 0)
            self._call("map_chunk", self._api.cuMemMap, arguments, address=address, chunk=chunk)
        except BaseException:
            with self._lock:
                self._book.drop(mapping)
            raise

    def enable_access(self, address: int, size: int) -> None:
        """Let this device (and peers that were let in) read and write the range."""
        self._require_virtual("enable_access")
        with self._lock:
            mappings = self._book.enable_access(address, size)
        access = self._access
        arguments = (address, size, access, len(access))
        self._call("enable_access", self._api.cuMemSetAccess, arguments, address=address, size=size)
        for mapping in mappings:
            mapping.accessible = True

    def unmap(self, address: int, size: int) -> None:
        """Unmap all chunks mapped in the range. The device must be done with them."""
        self._require_virtual("unmap")
        with self._lock:
            mappings = self._book.unmap(address, size)
        try:
            self._call("unmap", self._api.cuMemUnmap, (address, size), address=address, size=size)
        except DriverError:
            with self._lock:
                self._book.restore(mappings)
            raise

    def mapped(self, address: int, size: int) -> list[MappedRange]:
        """Return what is mapped in [address, address + size), in order."""
        with self._lock:
            return self._book.mapped(address, size)

    # --- chunks of several processes ---

    def share_chunks(self) -> None:
        """Make chunks that are created from now on exportable."""
        self._require_virtual("share_chunks")
        if not self.context.attribute("HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED"):
            raise UnsupportedError(
                f"share_chunks: {self.name} cannot give memory away as file descriptors (Linux can); "
                "make the pool without shareable=True"
            )
        self._chunk_properties.requestedHandleTypes = self._descriptor_type()

    def export_chunk(self, chunk: int) -> int:
        """Return a new file descriptor for a chunk; the caller closes it."""
        self._require_virtual("export_chunk")
        with self._lock:
            self._book.check_chunk("export_chunk", chunk)
        arguments = (chunk, self._descriptor_type(), 0)
        return int(
            self._call("export_chunk", self._api.cuMemExportToShareableHandle, arguments, chunk=chunk)[1]
        )

    def import_chunk(self, descriptor: int, size: int) -> int:
        """Return a handle of the chunk behind a file descriptor, which stays the caller's."""
        self._check_granular("import_chunk", size)
        function, arguments = (
            self._api.cuMemImportFromShareableHandle,
            (descriptor, self._descriptor_type()),
        )
        made = self._call_here("import_chunk", function, arguments, descriptor=descriptor, size=size)
        handle = int(made[1])
        with self._lock:
            known = handle in self._book.chunks
            if not known:
                self._book.add_chunk(handle, size)
        if known:  # CUDA counts references to one handle; our book does not
            self._call("release_chunk", self._api.cuMemRelease, (handle,), chunk=handle)
            raise refusal("import_chunk", "the chunk is this driver's own: open another driver", chunk=handle)
        return handle

    # --- for the modules beside this one ---

    def add_accessor(self, ordinal: int) -> None:
        """Let the device `ordinal` touch what `enable_access` enables from now on."""
        with self._lock:
            if all(access.location.id != ordinal for access in self._access):
                self._access = [*self._access, self._access_by(ordinal)]

    # --- inside ---

    @abstractmethod
    def _refuse_when_closed(self, call: str, **arguments: object) -> None: ...
    @abstractmethod
    def _finish_closing(self) -> None: ...

    def _check_granular(self, call: str, size: int) -> None:
        self._require_virtual(call)
        self._book.check_granular(call, size)
        self._refuse_when_closed(call, size=size)

    def _require_virtual(self, call: str) -> None:
        if not self.granularity:
            raise UnsupportedError(
                f"{call}: {self.name} has no virtual memory management; use raw allocations"
            )

    def _find_granularity(self) -> int:
        if not self.context.attribute("VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"):
            return 0
        option = self._api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        result = self._api.cuMemGetAllocationGranularity(self._chunk_properties, option)
        return int(self.context.bindings.expect("cuMemGetAllocationGranularity", result))

    def _descriptor_type(self) -> Any:
        return self._api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    def _describe_chunks(self) -> Any:
        properties = self._api.CUmemAllocationProp()
        properties.type = self._api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = self._api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = self.ordinal
        return properties

    def _access_by(self, ordinal: int) -> Any:
        access = self._api.CUmemAccessDesc()
        access.location.type = self._api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = ordinal
        access.flags = self._api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        return access
