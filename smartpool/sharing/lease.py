"""Leases: how an exporter knows whether another process still holds a buffer, crashes included.

Problem: the exporter must not reuse a block that an importer has open, must be able to reuse it once
nobody has, and an importer must not open a block that was taken back. Messages between the two would
be lost with a process that dies.
Method: one file in memory travels with the descriptors of the chunks. An importer opens it anew, which
gives it a lock of its own, and holds a *shared* lock on it for as long as the buffer is open. The
exporter asks for the *exclusive* lock: it gets it when nobody has the buffer open, and then writes into
the file, still under the lock, that the buffer is gone. An importer that comes late reads that. The
system drops the locks of a process that ends, however it ends (`flock`, which belongs to an open file
and not to a process, so that several openings of one process count apart).
Rejected: a pipe whose end tells that the readers are gone (the copy that is on its way to a spawned
process cannot be told from one that is in use); counting in shared memory (a crash leaves it wrong);
asking the driver (CUDA does not count).
"""

from __future__ import annotations

import os
from typing import Final

from smartpool.errors import SharingError, UnsupportedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lease"]

_REVOKED: Final = b"\x01"


class Lease:
    """One lease; both sides have one.

    Parameters
    ----------
    descriptor
        Of the file. It stays the caller's.

    Examples
    --------
    >>> import os
    >>> file = Lease.create()
    >>> owner, reader = Lease(file), Lease(file).hold()
    >>> owner.held, owner.revoke()
    (True, False)
    >>> os.close(reader)
    >>> owner.held, owner.revoke()
    (False, True)
    >>> os.close(file)
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @staticmethod
    def create() -> int:
        """Return the descriptor of a new lease's file, which the caller closes."""
        if fcntl is None or not hasattr(os, "memfd_create"):
            raise UnsupportedError("sharing buffers needs Linux: file descriptors stand for memory there")
        return os.memfd_create("smartpool-lease", os.MFD_CLOEXEC)

    # ------------------------------------------------------------------ the importer

    def hold(self) -> int:
        """Hold the lease until the returned descriptor is closed.

        Raises
        ------
        SharingError
            When the exporter let go of the buffer before.
        """
        own = self._open(os.O_RDONLY)
        try:
            fcntl.flock(own, fcntl.LOCK_SH)
            revoked = os.pread(own, 1, 0) == _REVOKED
        except BaseException:
            os.close(own)
            raise
        if not revoked:
            return own
        os.close(own)
        raise SharingError(
            "expected a shared buffer that its owner still keeps, but the owner closed it before it was "
            "opened here; keep the SharedBuffer open there until the other process has opened it"
        )

    # ------------------------------------------------------------------ the exporter

    @property
    def held(self) -> bool:
        """Whether some opening, of whichever process, holds the lease now."""
        own = self._open(os.O_RDONLY)
        try:
            return not _lock(own)
        finally:
            os.close(own)

    def revoke(self, *, wait: bool = False) -> bool:
        """End the lease for good, unless somebody holds it; return whether it is over.

        With `wait`, block until nobody does.
        """
        own = self._open(os.O_RDWR)
        try:
            if not _lock(own, wait=wait):
                return False
            os.pwrite(own, _REVOKED, 0)
            return True
        finally:
            fcntl.flock(own, fcntl.LOCK_UN)  # closing alone leaves it to a child that was forked meanwhile
            os.close(own)

    def _open(self, mode: int) -> int:
        """Open the file anew. A descriptor that was handed over, or copied, shares its lock with others."""
        return os.open(f"/proc/self/fd/{self._descriptor}", mode | os.O_CLOEXEC)


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
