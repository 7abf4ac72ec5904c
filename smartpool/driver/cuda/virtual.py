"""Virtual memory of one CUDA device: addresses, chunks, and where they are mapped.

What breaks the protocol's rules is CUDA's to refuse here, and it accepts some of it (`docs/drivers.md`): the
pool keeps one book of what is mapped, and asks for nothing else. `smartpool.driver.checked` refuses it first,
in tests and for pools in debug mode. Noted is what CUDA wants to be told again, the size of a chunk, and what
callers hold: nothing goes back twice, for its number may be somebody else's by then.

Chunks that other processes may open are made with a handle type of their own, which CUDA wants
to know when a chunk is created; `share_chunks` says so for all that are created from then on.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

from smartpool.driver.cuda.context import Context
from smartpool.driver.protocol import refusal
from smartpool.errors import DriverError, UnsupportedError
from smartpool.forks import renewed

__all__ = ["VirtualMemory"]

_ADVICE: Final = {
    "free": "pass an address that allocate returned, once",
    "free_host": "pass an address that allocate_host returned, once",
    "release_chunk": "no such chunk: pass a handle from create_chunk, not released",
    "unreserve": "pass the address and size of one whole reservation, once",
}


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
        self._access = self._own_access()
        self.granularity = self._find_granularity()
        self._lock = renewed(self, "_lock", threading.Lock)
        self._chunks: dict[int, int] = {}  # handle -> bytes
        self._reserved: dict[int, int] = {}  # address -> bytes
        self._raw: dict[int, int] = {}  # address -> bytes
        self._host: dict[int, int] = {}  # address of pinned memory -> bytes

    # --- addresses ---

    def reserve(self, size: int) -> int:
        """Return the base of a fresh range of addresses with no memory behind them."""
        self._begin_virtual("reserve", size)
        address = int(self._call("reserve", self._api.cuMemAddressReserve, (size, 0, 0, 0), size=size)[1])
        self._reserved[address] = size
        return address

    def unreserve(self, address: int, size: int) -> None:
        """Give back a whole reservation in which nothing is mapped."""
        self._require_virtual("unreserve")
        if self._reserved.get(address) != size:
            raise refusal("unreserve", _ADVICE["unreserve"], address=address, size=size)
        function = self._api.cuMemAddressFree
        self._return(self._reserved, "unreserve", function, (address, size), address=address, size=size)

    # --- chunks ---

    def create_chunk(self, size: int) -> int:
        """Return a handle of physical memory, mapped nowhere."""
        self._begin_virtual("create_chunk", size)
        made = self._call("create_chunk", self._api.cuMemCreate, (size, self._chunk_properties, 0), size=size)
        handle = int(made[1])
        self._chunks[handle] = size
        return handle

    def release_chunk(self, chunk: int) -> None:
        """Give the memory of a chunk that is mapped nowhere back."""
        self._require_virtual("release_chunk")
        self._return(self._chunks, "release_chunk", self._api.cuMemRelease, (chunk,), chunk=chunk)

    def map_chunk(self, address: int, chunk: int) -> None:
        """Map the whole chunk at `address`."""
        self._require_virtual("map_chunk")
        arguments = (address, self._size_of("map_chunk", chunk), 0, chunk, 0)
        self._call("map_chunk", self._api.cuMemMap, arguments, address=address, chunk=chunk)

    def enable_access(self, address: int, size: int) -> None:
        """Let this device read and write the range."""
        self._require_virtual("enable_access")
        arguments = (address, size, [self._access], 1)
        self._call("enable_access", self._api.cuMemSetAccess, arguments, address=address, size=size)

    def unmap(self, address: int, size: int) -> None:
        """Unmap all chunks mapped in the range. The device must be done with them."""
        self._require_virtual("unmap")
        self._call("unmap", self._api.cuMemUnmap, (address, size), address=address, size=size)

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
        self._size_of("export_chunk", chunk)
        arguments = (chunk, self._descriptor_type(), 0)
        return int(
            self._call("export_chunk", self._api.cuMemExportToShareableHandle, arguments, chunk=chunk)[1]
        )

    def import_chunk(self, descriptor: int, size: int) -> int:
        """Return a handle of the chunk behind a file descriptor, which stays the caller's."""
        self._begin_virtual("import_chunk", size)
        function, arguments = (
            self._api.cuMemImportFromShareableHandle,
            (descriptor, self._descriptor_type()),
        )
        made = self._call_here("import_chunk", function, arguments, descriptor=descriptor, size=size)
        handle = int(made[1])
        with self._lock:
            known = handle in self._chunks
            self._chunks.setdefault(handle, size)
        if known:  # CUDA counts references to one handle; we do not
            self._call("release_chunk", self._api.cuMemRelease, (handle,), chunk=handle)
            raise refusal("import_chunk", "the chunk is this driver's own: open another driver", chunk=handle)
        return handle

    # --- inside ---

    @abstractmethod
    def _refuse_when_closed(self, call: str, **arguments: object) -> None: ...
    @abstractmethod
    def _finish_closing(self) -> None: ...

    def _begin_virtual(self, call: str, size: int) -> None:
        self._require_virtual(call)
        self._refuse_when_closed(call, size=size)

    def _size_of(self, call: str, chunk: int) -> int:
        size = self._chunks.get(chunk)
        if size is None:
            raise refusal(call, _ADVICE["release_chunk"], chunk=chunk)
        return size

    def _return(
        self,
        held: dict[int, int],
        call: str,
        function: Callable[..., Any],
        values: tuple[int, ...],
        **arguments: int,
    ) -> None:
        """Give back what `held` has under the first of `values`; where CUDA refuses it stays there."""
        size = held.pop(values[0], None)  # one of many threads has it
        if size is None:
            raise refusal(call, _ADVICE[call], **arguments)
        try:
            self._call(call, function, values, **arguments)
        except DriverError:
            held[values[0]] = size
            raise
        self._finish_closing()

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

    def _own_access(self) -> Any:
        access = self._api.CUmemAccessDesc()
        access.location.type = self._api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = self.ordinal
        access.flags = self._api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        return access
