"""Copies from one device of a process to another of its kind."""

from __future__ import annotations

from typing import Final

from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.driver.protocol import Driver
from smartpool.errors import UnsupportedError

__all__ = ["copy_between"]

_PIECE: Final = 64 << 20


def copy_between(source: Driver, target: Driver, destination: int, origin: int, size: int) -> None:
    """Copy `size` bytes at `origin` on `source` to `destination` on `target`, after all queued work.

    Returns when the bytes are there. CUDA devices copy peer to peer where they can reach each other, and
    through the host where they cannot; `model` devices account for the time.

    Raises
    ------
    UnsupportedError
        When the devices are of different kinds.
    """
    if not size:
        return
    if isinstance(source, ModelDriver) and isinstance(target, ModelDriver):
        source.seconds += source.costs.copy.seconds(size)
        return
    if isinstance(source, CpuDriver) and isinstance(target, CpuDriver):
        for at in range(0, size, _PIECE):
            target.write(destination + at, source.read(origin + at, min(_PIECE, size - at)))
        return
    if source.name.startswith("cuda:") and target.name.startswith("cuda:"):
        from smartpool.driver.cuda.driver import CudaDriver  # noqa: PLC0415 - only where CUDA is
        from smartpool.driver.cuda.peers import copy_to_peer  # noqa: PLC0415

        if isinstance(source, CudaDriver) and isinstance(target, CudaDriver):
            target.synchronize()
            source.synchronize()
            copy_to_peer(source, target, destination, origin, size, stream=source.default_stream)
            source.synchronize()
            return
    raise UnsupportedError(f"cannot copy from {source.name} to {target.name}: expected devices of one kind")
