"""A pool whose memory comes from somebody else: a resource of RMM or of cuda.core.

For programs whose memory must stay under one roof (an RMM adaptor that limits or logs, a cuda.core
pool that is shared with other processes): the pool takes raw segments from the resource and cuts them
into blocks. Such memory is not mapped by us, so the elastic arenas are off; segments, coalescing and
streams are as on a device without virtual memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smartpool.config import SmartPoolConfig
from smartpool.driver.cuda import CudaDriver
from smartpool.driver.protocol import refusal
from smartpool.errors import DriverError, DriverOutOfMemoryError, InvalidRequestError
from smartpool.interop._frameworks import framework
from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["UpstreamDriver", "manager_over"]


def manager_over(
    resource: Any, *, device_id: int = 0, config: SmartPoolConfig | None = None
) -> AdvancedMemoryPoolManager:
    """Return a pool manager on a CUDA device whose memory comes from `resource`.

    Parameters
    ----------
    resource
        An RMM memory resource, or a `cuda.core.MemoryResource`, of device memory.
    device_id
        The CUDA device whose memory the resource gives.
    config
        How the pool behaves.

    Raises
    ------
    InvalidRequestError
        When `resource` has no `allocate` and `deallocate`.
    DeviceNotFoundError, DriverNotInstalledError
        When the device is not there.
    """
    if not all(callable(getattr(resource, name, None)) for name in ("allocate", "deallocate")):
        raise InvalidRequestError(
            f"expected a memory resource of RMM or cuda.core, got {resource!r}, which cannot allocate"
        )
    return AdvancedMemoryPoolManager(UpstreamDriver(resource, device_id), config)


class UpstreamDriver(CudaDriver):
    """A CUDA device whose raw memory is a resource's; streams, events and copies are the device's.

    Parameters
    ----------
    resource
        As `manager_over`.
    ordinal
        The device number.
    options
        As `CudaDriver`.
    """

    def __init__(self, resource: Any, ordinal: int = 0, **options: Any) -> None:
        super().__init__(ordinal, **options)
        self.granularity = 0  # nothing of this memory can be mapped elsewhere
        self._resource = resource
        self._give_back: dict[int, Callable[[], None]] = {}

    def __repr__(self) -> str:
        return f"<UpstreamDriver {self.name!r} over {self._resource!r}>"

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of the resource, ready for every stream."""
        self._check_allocation(size)
        self.calls["allocate"] += 1
        try:
            answer = self._take(size)
        except Exception as error:
            empty = isinstance(error, MemoryError) or "OUT_OF_MEMORY" in str(error)
            kind = DriverOutOfMemoryError if empty else DriverError
            raise kind("allocate", "UPSTREAM", {"size": size}, advice=str(error)) from error
        handle = getattr(answer, "handle", None)
        if handle is None:  # RMM gives an address
            address = int(answer)
            give_back: Callable[[], None] = lambda: self._resource.deallocate(address, size)  # noqa: E731
        else:  # cuda.core gives a buffer
            address, give_back = int(handle), answer.close
        self._raw[address] = size
        self._give_back[address] = give_back
        # A resource may give memory that is ready on the stream it was asked on and nowhere else.
        self.synchronize(self.default_stream)
        return address

    def free(self, address: int) -> None:
        """Give back what `allocate` returned, once the device is done with it."""
        self.calls["free"] += 1
        self.synchronize()
        give_back = self._give_back.pop(address, None)
        if give_back is None:
            raise refusal("free", "pass an address that allocate returned, once", address=address)
        self._raw.pop(address, None)
        give_back()
        self._finish_closing()

    def _take(self, size: int) -> Any:
        try:
            return self._resource.allocate(size)  # RMM, and cuda.core before 1.0, on the default stream
        except TypeError:  # cuda.core from 1.0 on wants a stream of its own
            core = framework("cuda.core", install="pip install cuda-core")
            return self._resource.allocate(size, stream=core.Device(self.ordinal).default_stream)
