"""The bytes of blocks: where a block is, and stamps that say whose bytes they are.

A stamp is a sequence of 8-byte words, each made of the block's number and the word's place in the block,
so that bytes of another block show, and bytes of the same block in a wrong place. Blocks up to 64 KiB are
stamped whole; larger ones at both ends and in the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np

from smartpool.errors import ConfigurationError

__all__ = ["Memory", "address_of", "host_read", "host_write"]

WHOLE: Final = 64 << 10
_PART: Final = 4 << 10
_EDGE: Final = 64
_WORD: Final = 8
_NUMBER: Final = (1 << 31) - 1
_NUMBERS: Final = ("ptr", "pointer", "handle", "address", "data_ptr")


class Memory:
    r"""Reads and writes the bytes of blocks.

    Parameters
    ----------
    read, write
        ``read(address, nbytes) -> bytes`` and ``write(address, data)``; None for blocks that are Python
        buffers.
    address
        The address of what a request returned; `address_of` by default.

    Examples
    --------
    >>> memory, block = Memory(), bytearray(12)
    >>> memory.stamp(block, 12, number=3)
    >>> memory.intact(block, 12, number=3)
    True
    >>> block[11] = 9
    >>> memory.intact(block, 12, number=3)
    False
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes] | None = None,
        write: Callable[[int, bytes], object] | None = None,
        *,
        address: Callable[[Any], int] | None = None,
    ) -> None:
        self._read, self._write = read, write
        self._address = address or address_of

    def reaches(self, block: object) -> bool:
        """Return whether the bytes of the block can be read and written."""
        return self._read is not None or (not isinstance(block, int) and _view(block) is not None)

    def stamp(self, block: object, nbytes: int, number: int) -> None:
        """Write the stamp of block `number` into the block."""
        for start, size in spans(nbytes):
            self._put(block, start, stamp_bytes(number, start, size))

    def intact(self, block: object, nbytes: int, number: int, *, edges: bool = False) -> bool:
        """Return whether the stamp is there; with `edges`, look at the ends of each part only."""
        return self.find_damage(block, nbytes, number, edges=edges) is None

    def find_damage(
        self, block: object, nbytes: int, number: int, *, edges: bool = False
    ) -> tuple[int, bytes, bytes] | None:
        """Return where the stamp is not what it was, what is there, and what was; None where all is."""
        for start, size in spans(nbytes):
            for at, length in _edges(start, size) if edges else ((start, size),):
                wanted, found = stamp_bytes(number, at, length), self._get(block, at, length)
                if found != wanted:
                    first = next(
                        (
                            place
                            for place, pair in enumerate(zip(found, wanted, strict=False))
                            if pair[0] != pair[1]
                        ),
                        min(len(found), len(wanted)),
                    )
                    return at + first, found[first : first + _WORD], wanted[first : first + _WORD]
        return None

    def _get(self, block: object, start: int, nbytes: int) -> bytes:
        if self._read is not None:
            return bytes(self._read(self._address(block) + start, nbytes))
        view = _view(block)
        assert view is not None
        return bytes(view[start : start + nbytes])

    def _put(self, block: object, start: int, data: bytes) -> None:
        if self._write is not None:
            self._write(self._address(block) + start, data)
            return
        view = _view(block)
        assert view is not None
        view[start : start + len(data)] = data


def stamp_bytes(number: int, start: int, nbytes: int) -> bytes:
    """Return the bytes of block `number` from `start` (a multiple of 8) on.

    >>> stamp_bytes(2, 8, 10).hex()
    '01000000020000000200'
    """
    return _short_stamp(number, start, nbytes) if nbytes <= _EDGE else _stamp(number, start, nbytes)


def _stamp(number: int, start: int, nbytes: int) -> bytes:
    first = start // _WORD
    if nbytes <= _WORD:
        return (first | (number & _NUMBER) << 32).to_bytes(_WORD, "little")[:nbytes]
    words = np.arange(first, first + -(-nbytes // _WORD), dtype="<u8") | np.uint64((number & _NUMBER) << 32)
    return words.tobytes()[:nbytes]


_short_stamp = lru_cache(4096)(_stamp)


def spans(nbytes: int) -> tuple[tuple[int, int], ...]:
    """Return the parts of a block that carry its stamp: ``(start, size)``.

    >>> spans(100), spans(1 << 20)
    (((0, 100),), ((0, 4096), (524288, 4096), (1044480, 4096)))
    """
    if nbytes <= WHOLE:
        return ((0, nbytes),) if nbytes else ()
    last = (nbytes - _PART) & -_WORD
    return (0, _PART), (nbytes // 2 & -_WORD, _PART), (last, nbytes - last)


def _edges(start: int, size: int) -> tuple[tuple[int, int], ...]:
    if size <= 2 * _EDGE:
        return ((start, size),)
    last = (size - _EDGE) & -_WORD
    return (start, _EDGE), (start + last, size - last)


def address_of(block: Any) -> int:
    """Return the address of what an allocator returned.

    Integers are addresses. Objects are asked for ``ptr``, ``pointer``, ``handle``, ``address`` or
    ``data_ptr`` (attribute or method), then for an array interface, then for Python's buffer protocol.

    >>> address_of(4096)
    4096
    >>> address_of(np.zeros(3, np.uint8)) > 0
    True

    Raises
    ------
    ConfigurationError
        When none is there: give `check_allocator` an ``address`` function.
    """
    if isinstance(block, int | np.integer):
        return int(block)
    for name in _NUMBERS:
        value = getattr(block, name, None)
        value = value() if callable(value) else value
        if value is not None and hasattr(value, "__int__"):
            return int(value)
    for name in ("__cuda_array_interface__", "__array_interface__"):
        interface = getattr(block, name, None)
        if interface is not None:
            return int(interface["data"][0])
    view = _view(block)
    if view is None:
        raise ConfigurationError(
            "address",
            f"expected a function that tells the address of a block such as {block!r}; give address=",
        )
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0]) if len(view) else 0


def _view(block: Any) -> memoryview | None:
    try:
        view = memoryview(block)
        return view if view.format == "B" and view.ndim == 1 else view.cast("B")
    except (TypeError, ValueError):  # no buffer, or none in one piece
        return None


def host_read(allocator: object, address: int, nbytes: int) -> bytes:  # noqa: ARG001 - a hook's arguments
    """Read this process's own memory: `read` for allocators that return integer addresses in it.

    A wrong address ends the process, as it does for everybody who follows it.
    """
    import ctypes  # noqa: PLC0415 - few need it

    return ctypes.string_at(address, nbytes)


def host_write(allocator: object, address: int, data: bytes) -> None:  # noqa: ARG001 - a hook's arguments
    """Write this process's own memory: `write` beside `host_read`."""
    import ctypes  # noqa: PLC0415

    ctypes.memmove(address, data, len(data))
