"""Soft pressure: telling the program that memory runs short, before it runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smartpool.telemetry.statistics import MemorySnapshot

__all__ = ["Pressure", "PressureCallback", "PressureCallbacks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """What a callback is told.

    Attributes
    ----------
    device
        The device's name.
    share
        The share of the device or of the pool's limit that is in use, whichever is more.
    threshold
        The share above which it is pressure.
    excess_bytes
        What would have to go to be below the threshold again.
    """

    device: str
    share: float
    threshold: float
    excess_bytes: int


PressureCallback = Callable[[Pressure], bool]
"""Frees what it can; True when it freed something."""


class PressureCallbacks:
    """Who wants to know, and which devices they were told of.

    A device is told of once when its pressure rises above the threshold, and again only after it fell
    below: a program that cannot free anything is not asked all the time.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._callbacks: list[PressureCallback] = []
        self._told: set[int] = set()

    def add(self, callback: PressureCallback) -> None:
        """Tell `callback` from now on."""
        self._callbacks.append(callback)

    def remove(self, callback: PressureCallback) -> None:
        """Tell it no more; `ValueError` when it was not added."""
        self._callbacks.remove(callback)

    def look(self, index: int, now: MemorySnapshot) -> bool:
        """Tell everyone if the pressure of device number `index` has risen; True if one freed something."""
        if now.pressure < self.threshold:
            self._told.discard(index)
            return False
        if index in self._told:
            return False
        self._told.add(index)
        whole = min(now.cap_bytes, now.device_total_bytes)
        told = Pressure(
            device=now.device,
            share=now.pressure,
            threshold=self.threshold,
            excess_bytes=max(0, int((now.pressure - self.threshold) * whole)),
        )
        failed: list[Exception] = []
        freed = False
        for callback in list(self._callbacks):
            try:
                freed |= bool(callback(told))
            except Exception as error:  # noqa: BLE001 - raised below, when everyone was told
                failed.append(error)
        if failed:
            raise failed[0]
        return freed
