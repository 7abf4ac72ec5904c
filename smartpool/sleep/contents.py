"""What was in memory that sleeps: in pinned memory of the host, in a file, or nowhere.

Pinned memory is dear to get (a second for some GiB), so it is got on several threads while the first
copies are under way, and kept for the next time up to a limit. A file is written through two pinned pieces:
one is copied into while the other is written.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from smartpool.driver.protocol import Driver
from smartpool.errors import AsleepError
from smartpool.heap.arena import Range
from smartpool.units import GiB, MiB

__all__ = ["Contents", "HostMemory", "keep_in_file", "keep_on_host"]

PIECE: Final = 32 * MiB
_KEPT: Final = 16 * GiB
_THREADS: Final = 4  # more than that do not pin faster
_MOUNTS: Final = Path("/proc/self/mounts")
_IN_MEMORY: Final = ("tmpfs", "ramfs")


class Contents(Protocol):
    """The bytes of ranges, kept elsewhere."""

    def restore(self) -> None:
        """Bring them back, and wait until they are there. Repeatable."""

    def discard(self) -> None:
        """Let go of what they are kept in. Idempotent."""


class HostMemory:
    """Pinned pieces of one driver, in use and kept for the next time.

    Attributes
    ----------
    kept_bytes_limit
        Bytes of pieces that are kept though nobody uses them.
    """

    def __init__(self, driver: Driver) -> None:
        self.kept_bytes_limit = _KEPT
        self.kept: list[int] = []
        self._driver = driver

    def take(self, count: int, taken: list[int]) -> Iterator[int]:
        """Yield `count` pieces, each entered in `taken` before; those that are not kept come from threads."""
        while self.kept and count:
            taken.append(self.kept.pop())
            count -= 1
            yield taken[-1]
        if not count:
            return
        made: list[int] = []
        with ThreadPoolExecutor(min(_THREADS, count)) as threads:
            futures = [
                threads.submit(lambda: made.append(self._driver.allocate_host(PIECE))) for _ in range(count)
            ]
            try:
                for future in futures:
                    future.result()
                    taken.append(made.pop())
                    yield taken[-1]
            finally:
                threads.shutdown(cancel_futures=True)
                taken += made

    def give(self, taken: list[int]) -> None:
        """Take pieces back, and empty the list; beyond the limit they go to the system."""
        while taken:
            piece = taken.pop()  # first: an interrupt may lose a piece, and never have it twice
            if (len(self.kept) + 1) * PIECE <= self.kept_bytes_limit:
                self.kept.append(piece)
            else:
                self._driver.free_host(piece)

    def close(self) -> None:
        """Give everything back that is kept."""
        while self.kept:
            self._driver.free_host(self.kept[-1])
            self.kept.pop()  # last: a call that fails is made again by the next close


def keep_on_host(driver: Driver, host: HostMemory, ranges: Sequence[Range], stream: int) -> Contents:
    """Copy the bytes of `ranges` into pinned memory, and wait until they are there."""
    kept = _HostContents(driver, host, ranges, stream)
    try:
        for piece, parts in zip(host.take(len(kept.plan), kept.pieces), kept.plan, strict=True):
            for offset, address, size in parts:
                driver.copy_to_host(piece + offset, address, size, stream)
        driver.synchronize(stream)
    except BaseException:
        try:
            driver.synchronize()
        finally:
            kept.discard()
        raise
    return kept


class _HostContents:
    def __init__(self, driver: Driver, host: HostMemory, ranges: Sequence[Range], stream: int) -> None:
        self.plan = _pieces(ranges)
        self.pieces: list[int] = []
        self._driver, self._host, self._stream = driver, host, stream

    def restore(self) -> None:
        for piece, parts in zip(self.pieces, self.plan, strict=True):
            for offset, address, size in parts:
                self._driver.copy_from_host(address, piece + offset, size, self._stream)
        self._driver.synchronize(self._stream)

    def discard(self) -> None:
        self._host.give(self.pieces)


def keep_in_file(
    driver: Driver, host: HostMemory, ranges: Sequence[Range], stream: int, directory: os.PathLike[str] | str
) -> Contents:
    """Write the bytes of `ranges` to a new file in `directory`, and wait until they are on the disk."""
    if driver.dl_device[0] == _NOTHING_TO_READ:
        raise AsleepError(f"expected a device with memory to keep on disk, got {driver.name}")
    kind = _filesystem(Path(directory))
    if kind in _IN_MEMORY:
        raise AsleepError(f"directory: expected one on a disk, {directory} is memory ({kind})")
    kept = _FileContents(driver, host, ranges, stream)
    try:
        kept.write(directory)
    except OSError as error:
        kept.discard()
        raise AsleepError(f"expected room for a file in {directory}: {error}; all stays awake") from error
    except BaseException:
        kept.discard()
        raise
    return kept


class _FileContents:
    def __init__(self, driver: Driver, host: HostMemory, ranges: Sequence[Range], stream: int) -> None:
        self._plan = _pieces(ranges)
        self._sums: list[int] = []
        self._file: BinaryIO | None = None  # without a name: it goes with the process
        self._driver, self._host, self._stream = driver, host, stream

    def write(self, directory: os.PathLike[str] | str) -> None:
        file = self._file = cast("BinaryIO", tempfile.TemporaryFile(dir=directory, buffering=0))  # noqa: SIM115
        if self._plan:
            os.posix_fallocate(file.fileno(), 0, len(self._plan) * PIECE)
        taken: list[int] = []
        try:
            two = list(self._host.take(min(2, len(self._plan)), taken))
            for turn in range(len(self._plan)):
                if not turn:
                    self._copy(two[0], 0)
                self._driver.synchronize(self._stream)
                if turn + 1 < len(self._plan):
                    self._copy(two[(turn + 1) % 2], turn + 1)
                view = self._view(two[turn % 2], turn)
                self._sums.append(zlib.crc32(view))
                _write_all(file, view, turn * PIECE)
            os.fsync(file.fileno())
        finally:
            try:
                self._driver.synchronize(self._stream)
            finally:
                self._host.give(taken)

    def _copy(self, piece: int, turn: int) -> None:
        for offset, address, size in self._plan[turn]:
            self._driver.copy_to_host(piece + offset, address, size, self._stream)

    def _view(self, piece: int, turn: int) -> memoryview:
        offset, _, size = self._plan[turn][-1]
        return memoryview((c_char * (offset + size)).from_address(piece)).cast("B")

    def restore(self) -> None:
        assert self._file is not None
        taken: list[int] = []
        try:
            two = list(self._host.take(min(2, len(self._plan)), taken))
            for turn, parts in enumerate(self._plan):
                view = self._view(two[turn % 2], turn)
                read = _read_all(self._file, view, turn * PIECE)
                if read < len(view) or zlib.crc32(view) != self._sums[turn]:
                    raise AsleepError(
                        f"expected what was written {turn * PIECE} bytes into the file of sleeping memory, "
                        "the disk gave something else: it stays asleep, and its contents are lost"
                    )
                self._driver.synchronize(self._stream)  # the other piece is used next
                for offset, address, size in parts:
                    self._driver.copy_from_host(address, two[turn % 2] + offset, size, self._stream)
        finally:
            try:
                self._driver.synchronize(self._stream)
            finally:
                self._host.give(taken)

    def discard(self) -> None:
        if self._file is not None:
            self._file.close()


_NOTHING_TO_READ: Final = 12  # kDLExtDev: the model


def _pieces(ranges: Sequence[Range]) -> list[list[tuple[int, int, int]]]:
    """Return for each piece what is in it: offset, address and bytes.

    >>> _pieces([Range(512, PIECE), Range(1 << 40, 512)]) == [
    ...     [(0, 512, PIECE)], [(0, 1 << 40, 512)]]
    True
    """
    pieces: list[list[tuple[int, int, int]]] = []
    room = 0
    for start, left in ranges:
        while left:
            if not room:
                pieces.append([])
                room = PIECE
            size = min(left, room)
            pieces[-1].append((PIECE - room, start, size))
            start, left, room = start + size, left - size, room - size  # noqa: PLW2901
    return pieces


def _write_all(file: BinaryIO, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def _read_all(file: BinaryIO, view: memoryview, offset: int) -> int:
    done = 0
    while done < len(view):
        got = os.preadv(file.fileno(), [view[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def _filesystem(directory: Path) -> str:
    """Return the kind of file system that a directory is on; empty where the system does not say."""
    if not directory.is_dir():
        raise AsleepError(f"directory: expected one that is there, got {directory}")
    try:
        lines = _MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = directory.resolve()
    mounts = [(Path(line.split()[1]), line.split()[2]) for line in lines]
    inside = [
        (len(at.parts), place, kind) for place, (at, kind) in enumerate(mounts) if found.is_relative_to(at)
    ]
    return max(inside)[2] if inside else ""
