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
from collections.abc import Callable
from typing import Final

from smartpool.descriptors import Descriptor
from smartpool.driver.protocol import refusal
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
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_ANYWHERE: Final = None

_ADVICE: Final = {
    errno.ENOMEM: "there are as many mappings as vm.max_map_count allows: raise it, or use larger chunks",
    errno.EMFILE: "there are as many open files as the process may have: raise the limit (ulimit -n)",
}


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

    __slots__ = ("_end", "_length", "file")

    def __init__(self) -> None:
        try:  # it may go with this object: what is mapped stays, and what is not nobody can reach
            self.file = Descriptor.of(os.memfd_create, "smartpool", os.MFD_CLOEXEC)
        except OSError as error:
            raise _failure("create_chunk", error.errno) from error
        self._end = 0
        self._length = 0

    def take(self, size: int) -> int:
        """Return the offset of `size` fresh bytes, which read as zeros."""
        end = self._end + size
        if end > self._length:
            length = end + (1 << 40)  # growing costs a call: grow rarely, by holes
            try:
                os.ftruncate(self.file.fileno(), length)
            except OSError as error:
                raise _failure("create_chunk", error.errno, size=size) from error
            self._length = length
        offset, self._end = self._end, end
        return offset

    def give(self, offset: int, size: int) -> None:
        """Return the memory behind a range to the system.

        When a cycle of garbage holds the file, it may be closed before other finalisers in the cycle run;
        one of them may still release its chunks, whose memory has gone with the file.
        """
        if self.file.closed:
            return
        if _fallocate(self.file.fileno(), _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, size):
            raise _failure("release_chunk", offset=offset, size=size)

    def map(self, address: int, offset: int, size: int) -> None:
        """Put a range of the file at `address`, over what is there, without access."""
        if self.file.closed:
            raise _failure("map_chunk", errno.EBADF, address=address, size=size)
        map_pages(address, size, self.file.fileno(), offset)

    def close(self) -> None:
        """Close the file; pages that are mapped stay. Idempotent."""
        self.file.close()


class SharedChunks:
    """Chunks with a file in memory each, so that one can be handed to another process.

    Handles are numbers that no `ChunkFile` gives: it counts up from one granule.
    """

    __slots__ = ("_files", "_numbers")

    def __init__(self) -> None:
        self._files: dict[int, Descriptor] = {}
        self._numbers = itertools.count(_FIRST_SHARED)

    def __contains__(self, handle: int) -> bool:
        return handle in self._files

    def create(self, size: int) -> int:
        """Return the handle of `size` fresh bytes, which read as zeros."""
        try:
            file = Descriptor.of(os.memfd_create, "smartpool-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(file.fileno(), size)
            # Whoever holds the file may write, and must not be able to take the pages away under others.
            fcntl.fcntl(file, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
        except OSError as error:  # commonly the limit on open files
            raise _failure("create_chunk", error.errno, size=size) from error
        return self._add(file)

    def take_in(self, descriptor: int, size: int) -> int:
        """Return a handle of the chunk behind a descriptor of another process, who may not cut it short."""
        try:
            seals = fcntl.fcntl(descriptor, _F_GET_SEALS)  # EINVAL: no file in memory
            held = os.fstat(descriptor).st_size
            file = Descriptor.of(fcntl.fcntl, descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError as error:
            raise _failure("import_chunk", error.errno, descriptor=descriptor, size=size) from error
        if not seals & _F_SEAL_SHRINK:  # touching what is cut off would be the end of this process
            advice = "expected a file in memory that is sealed against shrinking"
            raise refusal("import_chunk", advice, descriptor=descriptor, size=size)
        if held != size:
            raise refusal("import_chunk", f"expected a file of {size} bytes, got {held}", size=size)
        return self._add(file)

    def descriptor(self, handle: int) -> int:
        """Return a new descriptor of the chunk's file."""
        try:
            return fcntl.fcntl(self._files[handle], fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError as error:
            raise _failure("export_chunk", error.errno, chunk=handle) from error

    def release(self, handle: int) -> None:
        """Let go of the file. The memory goes with its last holder, mappings included."""
        self._files.pop(handle, None)

    def map(self, address: int, handle: int, size: int) -> None:
        """Put the chunk at `address`, over what is there, without access."""
        file = self._files[handle]
        if file.closed:  # collected with the driver
            raise _failure("map_chunk", errno.EBADF, address=address, size=size)
        map_pages(address, size, file.fileno(), 0)

    def _add(self, file: Descriptor) -> int:
        handle = next(self._numbers)
        self._files[handle] = file
        return handle


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
    return DriverError(call, name, arguments, advice=_ADVICE.get(number, os.strerror(number)))
