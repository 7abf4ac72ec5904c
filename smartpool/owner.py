"""A block that a buffer and its consumers share, and copies of one for consumers that ask for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from smartpool.dlpack import CopiedMemory, DeviceType
from smartpool.errors import CaptureError, DLPackError

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["Owner", "copied"]

_HOST: Final = (int(DeviceType.CPU), 0)


class Owner:
    """A block that was exported: freed when the last of its holders is gone.

    Attributes
    ----------
    manager, pointer
        Whose block it is, and where.
    holds
        Whether the block is the owner's: from when the buffer hands it over until it is free.
    """

    __slots__ = ("holds", "manager", "pointer")

    def __init__(self, manager: AdvancedMemoryPoolManager, pointer: int) -> None:
        self.holds = False
        self.pointer = pointer
        self.manager = manager

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Consumers may outlive the interpreter, and its modules: then the process gives all back.
        if getattr(self, "holds", False) and not finalizing():
            self.holds = False  # other destructors of its cycle may still use the buffer
            self.manager.drop(self.pointer)


def copied(owner: Owner, nbytes: int, consumer: int | None, target: tuple[int, int]) -> CopiedMemory:
    """Copy a block to the device `target` for a consumer on the stream `consumer`, which waits for the block.

    What the host reads is there when this returns.

    Raises
    ------
    DLPackError
        When `target` is neither the device of the block nor the host.
    CaptureError
        Beside a capture, where the copy would become a part of the graph, or the host would have to wait.
    """
    manager, driver = owner.manager, owner.manager.driver
    if target not in (driver.dl_device, _HOST):
        raise DLPackError(
            f"expected dl_device={driver.dl_device}, where the memory is, or the host {_HOST}, got {target}; "
            "export here and let the consumer copy"
        )
    if target == driver.dl_device:
        copy = _on_the_host(owner, nbytes) if target == _HOST else _on_a_device(owner, nbytes, consumer)
        return CopiedMemory(owner=copy, pointer=copy.pointer)
    if manager.capturing:
        raise _beside_a_capture(driver.name, "the host cannot wait for the device meanwhile")
    data = np.empty(nbytes, np.uint8)
    if nbytes:
        with manager.working():
            data[:] = np.frombuffer(driver.read(owner.pointer, nbytes), np.uint8)
    return CopiedMemory(owner=data, pointer=data.ctypes.data)


def _on_the_host(owner: Owner, nbytes: int) -> Owner:
    """Return the owner of a copy in the same pool, on `cpu`: what was queued on any stream is done first."""
    manager, driver = owner.manager, owner.manager.driver
    copy = _new_block(manager, nbytes, None)
    if nbytes:
        with manager.working(), driver.beside_capture():
            driver.write(copy.pointer, driver.read(owner.pointer, nbytes))
    return copy


def _on_a_device(owner: Owner, nbytes: int, consumer: int | None) -> Owner:
    """Return the owner of a copy in the same pool, made on the consumer's stream where it named one.

    That stream waits for the block's own already, and needs not outlive it.
    """
    manager, driver = owner.manager, owner.manager.driver
    stream = manager.stream_of(owner.pointer) if consumer is None else driver.stream(consumer)
    if consumer is None and driver.is_capturing(stream):
        raise _beside_a_capture(
            driver.name, "it would become a part of the graph, and the consumer does not say that it is, too"
        )
    copy = _new_block(manager, nbytes, stream)
    if nbytes:
        with manager.working():
            driver.copy(copy.pointer, owner.pointer, nbytes, stream)
    return copy


def _new_block(manager: AdvancedMemoryPoolManager, nbytes: int, stream: int | None) -> Owner:
    made = Owner(manager, manager.malloc(nbytes, stream))
    made.holds = True
    return made


def _beside_a_capture(device: str, why: str) -> CaptureError:
    return CaptureError(
        f"expected no copy beside a capture on {device}: {why}; copy before the capture or behind it"
    )
