"""Pages of host memory by the system's own calls: allocate, reserve, map a file's pages, protect, unmap.

What the standard library's `mmap` does not offer: mappings at fixed addresses (Linux), and memory
that is not tied to the life of a Python object (POSIX), so that a buffer which outlives its pool,
or the interpreter's last minutes, leaks at worst and never dangles.

Nothing here knows the rules of the driver protocol; a call that the system refuses becomes a
`DriverError` with the name of its ``errno``.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from typing import Final

from smartpool.errors import DriverError, DriverOutOfMemoryError

__all__ = [
    "VIRTUAL",
    "ChunkFile",
    "SharedChunks",
    "allocate",
    "free",
    "map_pages",
    "protect",
    "reserve",
    "unmap_pages",
    "unreserve",
]

VIRTUAL: Final = sys.platform == "linux" and hasattr(os, "memfd_create")
"""Whether there is more than `allocate` and `free`."""

RAW: Final = os.name == "posix"

_PROT_NONE: Final = 0
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_FIRST_SHARED: Final = 1 << 62
_F_ADD_SEALS: Final = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_ANYWHERE: Final = None

_TOO_MANY: Final = (
    "the process has as many mappings as vm.max_map_count allows: use larger chunks, or raise it"
)


def _bind(name: str, result: object, *arguments: object) -> Callable[..., int]:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


_pointer, _size, _int, _long = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long
if RAW:
    _mmap = _bind("mmap", _pointer, _pointer, _size, _int, _int, _int, _long)
    _munmap = _bind("munmap", _int, _pointer, _size)
if VIRTUAL:
    import fcntl  # not on Windows

    _mprotect = _bind("mprotect", _int, _pointer, _size, _int)
    _fallocate = _bind("fallocate", _int, _int, _int, _long, _long)


def allocate(size: int) -> int:
    """Return the address of fresh, private pages that read as zeros."""
    if not RAW:
        return _allocate_object(size)
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _mmap(_ANYWHERE, size, access, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address == _MAP_FAILED:
        raise _failure("allocate", size=size)
    return address


def free(address: int, size: int) -> None:
    """Give back what `allocate` returned."""
    if not RAW:
        _objects.pop(address).close()
    elif _munmap(address, size):
        raise _failure("free", address=address, size=size)


def reserve(size: int, alignment: int) -> int:
    """Return the base of `size` fresh addresses, aligned, that fault when touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    address = _mmap(_ANYWHERE, size + alignment, _PROT_NONE, flags, -1, 0)
    if address == _MAP_FAILED:
        raise _failure("reserve", size=size)
    base = -(-address // alignment) * alignment
    if base > address:
        _munmap(address, base - address)
    _munmap(base + size, address + alignment - base)
    return base


def unreserve(address: int, size: int) -> None:
    """Give a reservation back to the system."""
    if _munmap(address, size):
        raise _failure("unreserve", address=address, size=size)


def map_pages(address: int, size: int, file: int, offset: int) -> None:
    """Put the file's pages at `address`, over what is there, without access."""
    if _mmap(address, size, _PROT_NONE, mmap.MAP_SHARED | _MAP_FIXED, file, offset) == _MAP_FAILED:
        raise _failure("map_chunk", address=address, size=size)


def protect(address: int, size: int) -> None:
    """Allow reading and writing in the range."""
    if _mprotect(address, size, mmap.PROT_READ | mmap.PROT_WRITE):
        raise _failure("enable_access", address=address, size=size)


def unmap_pages(address: int, size: int) -> None:
    """Put bare reserved addresses back over the range, in one step."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    if _mmap(address, size, _PROT_NONE, flags, -1, 0) == _MAP_FAILED:
        raise _failure("unmap", address=address, size=size)


class ChunkFile:
    """One sparse file in memory whose ranges are the chunks.

    Offsets are never handed out twice (a file may be 8 EiB long, and holes cost nothing), so a
    stale mapping can never show another chunk's bytes. One file serves all chunks: a file each
    would meet the limit on open files, commonly 1024, at 2 GiB of 2 MiB chunks.
    """

    __slots__ = ("__weakref__", "_closer", "_end", "_length", "file")

    def __init__(self) -> None:
        self.file = os.memfd_create("smartpool", os.MFD_CLOEXEC)
        self._end = 0
        self._length = 0
        # The file may go with this object: what is mapped stays, and what is not nobody can reach.
        self._closer = weakref.finalize(self, os.close, self.file)
        self._closer.atexit = False  # other code may still map chunks at exit; the system closes it

    def take(self, size: int) -> int:
        """Return the offset of `size` fresh bytes, which read as zeros."""
        end = self._end + size
        if end > self._length:
            length = end + (1 << 40)  # growing costs a call: grow rarely, by holes
            try:
                os.ftruncate(self.file, length)
            except OSError as error:
                raise _failure("create_chunk", error.errno, size=size) from error
            self._length = length
        offset, self._end = self._end, end
        return offset

    def give(self, offset: int, size: int) -> None:
        """Return the memory behind a range to the system.

        When a cycle of garbage holds the file, it is closed before the finalisers in the cycle run;
        one of them may still release its chunks, whose memory has gone with the file.
        """
        if not self._closer.alive:
            return
        if _fallocate(self.file, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, size):
            raise _failure("release_chunk", offset=offset, size=size)

    def map(self, address: int, offset: int, size: int) -> None:
        """Put a range of the file at `address`, over what is there, without access."""
        if not self._closer.alive:  # its number may be another file's by now
            raise _failure("map_chunk", errno.EBADF, address=address, size=size)
        map_pages(address, size, self.file, offset)

    def close(self) -> None:
        """Close the file; pages that are mapped stay. Idempotent."""
        self._closer()


class SharedChunks:
    """Chunks with a file in memory each, so that one can be handed to another process.

    Handles are numbers that no `ChunkFile` gives: it counts up from one granule.
    """

    __slots__ = ("__weakref__", "_closer", "_files", "_numbers")

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._numbers = itertools.count(_FIRST_SHARED)
        self._closer = weakref.finalize(self, _close_all, self._files)
        self._closer.atexit = False

    def __contains__(self, handle: int) -> bool:
        return handle in self._files

    def create(self, size: int) -> int:
        """Return the handle of `size` fresh bytes, which read as zeros."""
        try:
            file = os.memfd_create("smartpool-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:  # commonly the limit on open files
            raise _failure("create_chunk", error.errno, size=size) from error
        try:
            os.ftruncate(file, size)
            # Whoever holds the file may write, and must not be able to take the pages away under others.
            fcntl.fcntl(file, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
        except OSError as error:
            os.close(file)
            raise _failure("create_chunk", error.errno, size=size) from error
        return self._add(file)

    def take_in(self, descriptor: int, size: int) -> int:
        """Return a handle of the chunk behind a descriptor of another process."""
        try:
            held = os.fstat(descriptor).st_size
            file = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError as error:
            raise _failure("import_chunk", error.errno, descriptor=descriptor, size=size) from error
        if held != size:
            os.close(file)
            raise _failure("import_chunk", errno.EINVAL, descriptor=descriptor, size=size, held=held)
        return self._add(file)

    def descriptor(self, handle: int) -> int:
        """Return a new descriptor of the chunk's file."""
        try:
            return fcntl.fcntl(self._files[handle], fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError as error:
            raise _failure("export_chunk", error.errno, chunk=handle) from error

    def release(self, handle: int) -> None:
        """Let go of the file. The memory goes with its last holder, mappings included."""
        if self._closer.alive:  # else collected with the driver: the file has gone already
            os.close(self._files.pop(handle))

    def map(self, address: int, handle: int, size: int) -> None:
        """Put the chunk at `address`, over what is there, without access."""
        if not self._closer.alive:
            raise _failure("map_chunk", errno.EBADF, address=address, size=size)
        map_pages(address, size, self._files[handle], 0)

    def _add(self, file: int) -> int:
        handle = next(self._numbers)
        self._files[handle] = file
        return handle


def _close_all(files: dict[int, int]) -> None:
    while files:
        os.close(files.popitem()[1])


_objects: Final[dict[int, mmap.mmap]] = {}
"""Memory by address where the system's calls cannot be had: the standard library's objects hold it."""


def _allocate_object(size: int) -> int:
    try:
        memory = mmap.mmap(-1, size)
    except (OSError, OverflowError, ValueError) as error:
        raise DriverOutOfMemoryError("allocate", "ENOMEM", {"size": size}, advice=str(error)) from error
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _objects[address] = memory
    return address


def _failure(call: str, code: int | None = None, **arguments: object) -> DriverError:
    number = ctypes.get_errno() if code is None else code
    name = errno.errorcode.get(number, str(number))
    if call in ("allocate", "create_chunk") and number in (errno.ENOMEM, errno.ENOSPC, errno.EFBIG):
        return DriverOutOfMemoryError(call, name, arguments, advice=os.strerror(number))
    advice = _TOO_MANY if number == errno.ENOMEM else os.strerror(number)
    return DriverError(call, name, arguments, advice=advice)
