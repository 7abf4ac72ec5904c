"""Patterns around and in the blocks of debug mode: writing them, looking at them, telling what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from smartpool.debug_options import DebugOptions
from smartpool.driver.protocol import Driver
from smartpool.errors import (
    DoubleFreeError,
    MemoryCorruptionError,
    OverrunError,
    UnknownPointerError,
    UnsupportedError,
    UseAfterFreeError,
)
from smartpool.log import LOGGER
from smartpool.telemetry.labels import NOBODY, Label
from smartpool.units import format_size

__all__ = [
    "FREED_BYTE",
    "GUARD_BYTE",
    "DebugBlock",
    "Inspector",
    "freed_already",
    "leak_report",
    "points_into",
]

GUARD_BYTE: Final = 0xA5
FREED_BYTE: Final = 0xDD

_PIECE: Final = 16 << 20  # bytes that are read at once
_SHOWN_LEAKS: Final = 20


@dataclass(slots=True, eq=False)
class DebugBlock:
    """One block and what is known of it.

    Attributes
    ----------
    pointer, nbytes
        As the caller knows it.
    inner
        The block of the pool behind: guards and all.
    front, back
        Bytes of the guards.
    stream
        That of the request, on which the patterns are written.
    allocated, freed
        Who asked for it, and who gave it back.
    time
        When it was requested, on the monotonic clock.
    """

    pointer: int
    nbytes: int
    inner: int
    front: int
    back: int
    stream: int
    allocated: Label
    time: float
    freed: Label = NOBODY

    @property
    def size(self) -> int:
        """Bytes of the block of the pool behind."""
        return self.front + self.nbytes + self.back


class _Seen(NamedTuple):
    """The first byte that is not what it should be, its value, and how many there are in all."""

    address: int
    value: int
    total: int


class Inspector:
    """Writes the patterns of one device's blocks and looks whether they are as they were.

    Parameters
    ----------
    driver
        The device.
    options
        What to look for.
    """

    def __init__(self, driver: Driver, options: DebugOptions) -> None:
        self._driver = driver
        self._options = options
        self._found: list[MemoryCorruptionError] = []
        self._readable = True

    def guard(self, block: DebugBlock) -> None:
        """Write the guards of a new block, on its stream."""
        self._fill(block.inner, GUARD_BYTE, block.front, block.stream)
        self._fill(block.pointer + block.nbytes, GUARD_BYTE, block.back, block.stream)

    def poison(self, block: DebugBlock) -> None:
        """Fill a freed block. The device must be idle before, and before the block is reused.

        Not on the block's own stream, which may not exist any more.
        """
        if self._options.poison:
            self._fill(block.pointer, FREED_BYTE, block.nbytes, self._driver.default_stream)

    def check_guards(self, block: DebugBlock) -> None:
        """Look at the guards of a block."""
        for start, size in ((block.inner, block.front), (block.pointer + block.nbytes, block.back)):
            at = self._first_other(start, size, GUARD_BYTE)
            if at is not None:
                self._note(OverrunError, block, at, "outside of", GUARD_BYTE)
                self._fill(start, GUARD_BYTE, size, self._driver.default_stream)  # told once

    def check_poison(self, block: DebugBlock, *, again: bool = True) -> None:
        """Look whether a freed block is as `poison` left it, at both ends if it is large."""
        if not self._options.poison:
            return
        half = min(block.nbytes, self._options.check_bytes) // 2
        parts = [(block.pointer, block.nbytes)]
        if block.nbytes > self._options.check_bytes:
            parts = [(block.pointer, half), (block.pointer + block.nbytes - half, half)]
        for start, size in parts:
            at = self._first_other(start, size, FREED_BYTE)
            if at is not None:
                self._note(UseAfterFreeError, block, at, "after it was freed, into", FREED_BYTE)
                if again:
                    self._fill(start, FREED_BYTE, size, self._driver.default_stream)
                return

    def raise_found(self) -> None:
        """Raise the first thing that was found since the last time; the others are its notes."""
        found = self.take_found()
        if found:
            first, *others = found
            for other in others:
                first.add_note(f"and: {other}")
            raise first

    def take_found(self) -> list[MemoryCorruptionError]:
        """Return what was found since the last time, and forget it."""
        found, self._found = self._found, []
        return found

    def _first_other(self, start: int, size: int, value: int) -> _Seen | None:
        """Return what of the range is not `value`, in the first piece where anything is."""
        for at in range(start, start + size, _PIECE) if self._readable else ():
            length = min(_PIECE, start + size - at)
            try:
                data = self._driver.read(at, length)
            except UnsupportedError:  # the model has nothing to read
                self._readable = False
                return None
            others = length - data.count(value)
            if others:
                index = len(data) - len(data.lstrip(bytes([value])))
                return _Seen(at + index, data[index], others)
        return None

    def _note(
        self, kind: type[MemoryCorruptionError], block: DebugBlock, seen: _Seen, how: str, value: int
    ) -> None:
        address, found, total = seen
        offset = address - block.pointer
        error = kind(
            f"{total} bytes were written {how} the block of {block.nbytes} bytes at {block.pointer:#x} on "
            f"{self._driver.name}: the first is at offset {offset}, {found:#04x} instead of {value:#04x}\n"
            f"requested at\n{told(block.allocated)}"
            + (f"\nfreed at\n{told(block.freed)}" if block.freed is not NOBODY else ""),
            pointer=block.pointer,
            nbytes=block.nbytes,
            offset=offset,
            allocated_at=block.allocated.site,
            freed_at=block.freed.site,
        )
        LOGGER.error("%s", error)
        self._found.append(error)

    def _fill(self, address: int, value: int, size: int, stream: int) -> None:
        if size:
            self._driver.fill(address, value, size, stream)


def leak_report(device: str, blocks: list[DebugBlock]) -> str:
    """Return what is live, by place, in lines."""
    places: dict[str, list[int]] = {}
    for block in blocks:
        figures = places.setdefault(told(block.allocated), [0, 0])
        figures[0] += 1
        figures[1] += block.nbytes
    ordered = sorted(places.items(), key=lambda item: -item[1][1])
    nbytes = sum(figures[1] for figures in places.values())
    lines = [f"{len(blocks)} blocks of {device}, {format_size(nbytes)}, were never freed"]
    for place, (count, held) in ordered[:_SHOWN_LEAKS]:
        lines += [f"{format_size(held)} in {count} blocks, requested at", place]
    if len(ordered) > _SHOWN_LEAKS:
        lines.append(f"and at {len(ordered) - _SHOWN_LEAKS} more places")
    return "\n".join(lines)


def freed_already(block: DebugBlock) -> DoubleFreeError:
    """Return the error of freeing a block a second time."""
    return DoubleFreeError(
        f"expected the address of a live block, got {block.pointer:#x}, which is free already; free every "
        f"block once\nrequested at\n{told(block.allocated)}\nfreed at\n{told(block.freed)}"
    )


def points_into(block: DebugBlock, address: int) -> UnknownPointerError:
    """Return the error of freeing an address inside of a block or its guards."""
    return UnknownPointerError(
        f"expected the address of a live block of this pool, got {address:#x}, at offset "
        f"{address - block.pointer} of the block of {block.nbytes} bytes at {block.pointer:#x}\n"
        f"requested at\n{told(block.allocated)}"
    )


def told(label: Label) -> str:
    """Return a label in indented lines."""
    return "\n".join(f"  {line}" for line in (label.described or "an unknown place").splitlines())
