"""Pickles of shared buffers: an address, where whoever unpickles it is sent the buffer.

Problem: file descriptors do not go into a pickle. `multiprocessing` keeps copies of them for a pickle until
somebody loads it, once: what nobody loads is kept for the life of the process, and the memory with it.
Method: a pickle holds no more than the address of a socket and a number. As long as the shared buffer is
open, this process sends it to processes of the same user that know the key which the processes of one program
share (`multiprocessing` gives it to its children). When the buffer is closed or gone, nothing is left of it,
and what is unpickled is closed as well. The thread that answers starts with the first pickle.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Sequence
from multiprocessing import current_process
from typing import Final, Protocol
from weakref import WeakValueDictionary

from smartpool.descriptors import Descriptor
from smartpool.errors import SharingError, SmartPoolError
from smartpool.forks import call_in_children
from smartpool.log import LOGGER
from smartpool.sharing.wire import Description, read_exactly, receive_message

__all__ = ["collect", "offer"]

_PATIENCE_S: Final = 60.0  # for one message of the other side
_PAUSE_S: Final = 0.1
_NONCE: Final = 32
_NUMBER: Final = struct.Struct("!Q")
_CREDENTIALS: Final = struct.Struct("3i")  # process, user, group
_GONE, _HERE = b"-", b"+"
_FAILURES: Final = (OSError, SmartPoolError)


class Offered(Protocol):
    """What other processes may have: a `SharedBuffer`."""

    description: Description
    number: int

    @property
    def closed(self) -> bool:
        """Whether it cannot be had any more."""

    def send(self, connection: socket.socket) -> None:
        """Send it over a connected Unix socket."""


class _Office:
    """One process's socket, and what can be had there."""

    current: _Office | None = None
    """Of this process: none before the first pickle, and in a forked child."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind("")  # a name that the system finds, and that goes with the socket
        self._listener.listen(64)
        self.address: bytes = self._listener.getsockname()
        self.offered: WeakValueDictionary[int, Offered] = WeakValueDictionary()
        threading.Thread(target=self._serve, name="smartpool-sharing", daemon=True).start()

    def close(self) -> None:
        """Close the socket: nobody answers in a forked child."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                way, _ = self._listener.accept()
            except OSError as error:  # no descriptor is left, which may change
                LOGGER.debug("nobody can be sent a shared buffer: %s", error)
                time.sleep(_PAUSE_S)
                continue
            threading.Thread(target=self._answer, args=(way,), name="smartpool-sending", daemon=True).start()

    def _answer(self, way: socket.socket) -> None:
        with way:
            try:
                way.settimeout(_PATIENCE_S)
                credentials = way.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
                    return
                number, theirs = _NUMBER.unpack(read_exactly(way, _NUMBER.size))[0], read_exactly(way, _NONCE)
                ours = secrets.token_bytes(_NONCE)
                way.sendall(_proof(b"owner", theirs) + ours)
                if not hmac.compare_digest(read_exactly(way, _NONCE), _proof(b"taker", ours)):
                    return
                shared = self.offered.get(number)
                if shared is None or shared.closed:
                    way.sendall(_GONE)
                else:
                    way.sendall(_HERE)
                    shared.send(way)
            except _FAILURES as error:  # theirs; or it was closed meanwhile
                LOGGER.debug("a shared buffer could not be sent: %s", error)


def _after_fork_in_child(_: object) -> None:
    office, _Office.current = _Office.current, None
    if office is not None:
        office.close()


call_in_children(_Office, _after_fork_in_child)


def offer(shared: Offered) -> tuple[bytes, int, str]:
    """Let other processes have `shared` while it is open; return what `collect` takes."""
    office = _Office.current
    if office is None:  # two threads may make two at once, and both are as good
        office = _Office.current = _Office()
    office.offered[shared.number] = shared
    return office.address, shared.number, shared.description.to_json()


def collect(address: bytes, number: int, description: str) -> tuple[Description, Sequence[Descriptor]]:
    """Return what a process offered, this one or another: without descriptors where it was closed there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
            way.settimeout(_PATIENCE_S)
            way.connect(address)
            ours = secrets.token_bytes(_NONCE)
            way.sendall(_NUMBER.pack(number) + ours)
            proof, theirs = read_exactly(way, _NONCE), read_exactly(way, _NONCE)
            if not hmac.compare_digest(proof, _proof(b"owner", ours)):
                raise SharingError("the key is another")
            way.sendall(_proof(b"taker", theirs))
            if read_exactly(way, len(_HERE)) == _HERE:
                return receive_message(way)
    except ConnectionRefusedError:  # the process has ended
        pass
    except _FAILURES as error:
        raise SharingError(
            f"expected a shared buffer from the process that pickled it, and of the same program: {error}; "
            "processes that multiprocessing did not start use SharedBuffer.send"
        ) from error
    return Description.from_json(description), ()


def _proof(side: bytes, nonce: bytes) -> bytes:
    """Return what only who knows the program's key can answer."""
    return hmac.digest(current_process().authkey, side + nonce, "sha256")
