"""Leases: how an exporter knows whether another process still holds a buffer, crashes included.

Problem: the exporter must not reuse a block that an importer has open, must be able to reuse it once
nobody has, and an importer must not open a block that was taken back. Messages between the two would
be lost with a process that dies.
Method: one file in memory travels with the descriptors of the chunks. An importer opens it anew, which
gives it locks of its own, holds a *shared* lock on it for as long as the buffer is open, and then reads
whether the file is marked. The exporter marks the file, and then asks whether anybody has a lock: if not,
nobody has the buffer open, and whoever comes late finds the mark. The exporter takes no lock, so nobody
waits for it. The system drops the locks of a process that ends, however it ends (they are those of an open
file, ``F_OFD_SETLK``, and not of a process, so that several openings of one process count apart).
Rejected: a pipe whose end tells that the readers are gone (the copy that is on its way to a spawned
process cannot be told from one that is in use); counting in shared memory (a crash leaves it wrong);
asking the driver (CUDA does not count); `flock`, which can only be asked by taking the lock, in the way of
importers and of others who ask.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from smartpool.descriptors import Descriptor
from smartpool.errors import SharingError, UnsupportedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["end_lease", "hold_lease", "is_held", "new_lease", "wanting_descriptors"]

_ENDED: Final = b"\x01"
_F_GET_SEALS: Final = 1034
_LOCK: Final = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, process


def new_lease() -> Descriptor:
    """Return the file of a new lease.

    >>> file = new_lease()
    >>> reader = hold_lease(file)
    >>> is_held(file), end_lease(file)
    (True, False)
    >>> reader.close()
    >>> is_held(file), end_lease(file)
    (False, True)
    """
    if not hasattr(fcntl, "F_OFD_SETLK") or not hasattr(os, "memfd_create"):
        raise UnsupportedError("sharing buffers needs Linux: file descriptors stand for memory there")
    return Descriptor.of(os.memfd_create, "smartpool-lease", os.MFD_CLOEXEC)


def hold_lease(file: Descriptor) -> Descriptor:
    """Hold the lease until what this returns is closed: the importer's side.

    Raises
    ------
    SharingError
        When the exporter let go of the buffer before, or the file is no lease.
    """
    number = file.fileno()
    try:
        with wanting_descriptors():
            fcntl.fcntl(number, _F_GET_SEALS)  # a file in memory: opening others may wait for ever
            own = Descriptor(f"/proc/self/fd/{number}")
            free = _lock(own, fcntl.F_OFD_SETLK, fcntl.F_RDLCK)
            ended = os.pread(own.fileno(), 1, 0) == _ENDED
    except OSError as error:
        raise SharingError(
            f"expected the lease of a shared buffer, got a file that is none: {error}"
        ) from error
    if ended:
        raise SharingError(
            "expected a shared buffer that its owner still keeps, but the owner closed it before it was "
            "opened here; keep the SharedBuffer open there until the other process has opened it"
        )
    if not free:
        raise SharingError("expected the lease of a shared buffer, got a file that somebody keeps locked")
    return own


def is_held(file: Descriptor) -> bool:
    """Return whether some opening, of whichever process, holds the lease now. Never blocks."""
    wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    found = fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, wanted)
    return bool(_LOCK.unpack(found)[0] != fcntl.F_UNLCK)


def end_lease(file: Descriptor, *, wait: bool = False) -> bool:
    """Let nobody hold the lease from now on; return whether nobody does. The exporter's side; repeatable.

    With `wait`, block until nobody does.
    """
    os.pwrite(file.fileno(), _ENDED, 0)
    if wait:
        _lock(file, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK)
        _lock(file, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)
    return not is_held(file)


def _lock(file: Descriptor, command: int, kind: int) -> bool:
    try:
        fcntl.fcntl(file.fileno(), command, _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        return False
    return True


@contextmanager
def wanting_descriptors() -> Iterator[None]:
    """Say what to do when the process has no file descriptor left."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NONE_LEFT:
            raise
        raise SharingError(
            f"expected file descriptors for a shared buffer, and none is left ({error}): raise the limit on "
            "open files (ulimit -n), or close what is not needed"
        ) from error


_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)
