"""Reading pickles that hold plain data, without being able to run anything.

Problem. PyTorch saves memory snapshots with `pickle`, a language whose programs import modules and call
functions. The documented remedy, an `Unpickler` whose ``find_class`` refuses, stops the calls but not
the rest: ``LONG_BINPUT`` with a large index makes the C unpickler allocate gigabytes for its memo,
``BINBYTES8`` with a large length allocates it before reading, and integer keys can be chosen so that
all hash alike.

Method. An interpreter of the few opcodes that a pickler writes for dictionaries, lists, tuples,
strings, numbers, booleans and None (protocols 2 to 5). There is no instruction in it that imports,
calls, or makes an object of any other type, so there is nothing to refuse but the unknown. Opcodes are
those of the standard library's `pickletools`, which documents each.

Bound. Time is linear in the file: 7 MB a second. Memory is at most 50 times the file (a test measures the
worst that the rules allow; real snapshots take 8 times): lengths are checked against what is left of the
file, memo indices must count up, and containers, which take up to 232 bytes from a few bytes of pickle,
may be one for every 8 bytes; real snapshots have one for 45. Keys are strings, whose hashes cannot be
chosen, or integers of 32 bits.

Rejected: a first pass with `pickletools.genops` and then the C unpickler (no faster, since the pass in
Python is what costs, and two readers of one format must agree), `pickle._Unpickler` (private, and
refusals would have to be listed instead of permissions).
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final, NoReturn

from smartpool.errors import TraceFormatError, UnsafePickleError

__all__ = ["PlainUnpickler"]

_HIGHEST_PROTOCOL: Final = 5
_CONTAINERS: Final = 1024  # that any pickle may have, and one more for each _BYTES_PER_CONTAINER
_BYTES_PER_CONTAINER: Final = 8
_MAX_INT_BYTES: Final = 16
_KEY_LIMIT: Final = 1 << 31
_MAX_DEPTH: Final = 1000


class PlainUnpickler:
    """Reads one pickle of plain data from a byte string.

    Parameters
    ----------
    data
        The pickle.
    where
        What it is, for messages.

    Examples
    --------
    >>> import pickle
    >>> PlainUnpickler(pickle.dumps({"a": [1, 2.5, None], "b": ("x", True)})).load()
    {'a': [1, 2.5, None], 'b': ('x', True)}
    >>> PlainUnpickler(pickle.dumps(print)).load()
    Traceback (most recent call last):
    smartpool.errors.UnsafePickleError: pickle, byte 18: expected plain containers, strings and numbers ...
    """

    def __init__(self, data: bytes, *, where: str = "pickle") -> None:
        self._data = data
        self._where = where
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: list[Any] = []
        self._containers_left = _CONTAINERS + len(data) // _BYTES_PER_CONTAINER

    def load(self) -> Any:
        """Return the object.

        Raises
        ------
        UnsafePickleError
            When the pickle holds anything but plain data, or asks for absurd memory.
        TraceFormatError
            When it is truncated or no pickle.
        """
        data, actions, stop = self._data, self._ACTIONS, pickle.STOP[0]
        if not data.startswith(b"\x80"):
            raise TraceFormatError(f"{self._where}: expected a pickle of protocol 2 or later")
        try:
            while True:
                opcode = data[self._at]
                self._at += 1
                if opcode == stop:
                    return self._finish()
                action = actions[opcode]
                if action is None:
                    self._refuse(opcode)
                action(self)
        except (IndexError, struct.error):
            # Of `data` past its end, of an empty stack, of a memo entry that was never made.
            raise TraceFormatError(
                f"{self._where}, byte {self._at}: the pickle is truncated or damaged"
            ) from None
        except (UnicodeDecodeError, TypeError, AttributeError) as error:
            # A string that is none; a list or dictionary expected, something else on the stack.
            raise TraceFormatError(
                f"{self._where}, byte {self._at}: the pickle is damaged ({error})"
            ) from None

    # ------------------------------------------------------------------ the end

    def _finish(self) -> Any:
        if len(self._stack) != 1 or self._marks:
            raise TraceFormatError(
                f"{self._where}, byte {self._at}: expected one object at the end of the pickle, "
                f"got {len(self._stack)}"
            )
        return self._stack[0]

    def _refuse(self, opcode: int) -> NoReturn:
        raise UnsafePickleError(
            f"{self._where}, byte {self._at - 1}: expected plain containers, strings and numbers, got "
            f"the pickle instruction {opcode:#04x}, which is not needed for them; nothing was run"
        )

    def _refuse_size(self, what: str) -> NoReturn:
        raise UnsafePickleError(f"{self._where}, byte {self._at}: {what}; refused")

    # ------------------------------------------------------------------ reading

    def _take(self, count: int) -> bytes:
        begin, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise IndexError
        return self._data[begin : self._at]

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _protocol(self) -> None:
        if not 2 <= self._unsigned(1) <= _HIGHEST_PROTOCOL:
            raise TraceFormatError(f"{self._where}: expected a pickle of protocol 2 to {_HIGHEST_PROTOCOL}")

    def _frame(self) -> None:
        self._take(8)  # frames say how much to read at once: all of it is here already

    # ------------------------------------------------------------------ values

    def _binint(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def _binint1(self) -> None:
        self._stack.append(self._data[self._at])
        self._at += 1

    def _binint2(self) -> None:
        self._stack.append(self._unsigned(2))

    def _long1(self) -> None:
        width = self._unsigned(1)
        if width > _MAX_INT_BYTES:
            self._refuse_size(f"an integer of {width} bytes, more than any address or size has")
        self._stack.append(int.from_bytes(self._take(width), "little", signed=True))

    def _binfloat(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def _short_text(self) -> None:
        begin = self._at + 1
        self._at = end = begin + self._data[self._at]
        if end > len(self._data):
            raise IndexError
        self._stack.append(str(self._data[begin:end], "utf-8", "surrogatepass"))

    def _text(self, width: int) -> None:
        self._stack.append(str(self._take(self._unsigned(width)), "utf-8", "surrogatepass"))

    # ------------------------------------------------------------------ containers

    def _new(self, container: Any) -> None:
        self._containers_left -= 1
        if self._containers_left < 0:
            self._refuse_size(f"more than one container for every {_BYTES_PER_CONTAINER} bytes of pickle")
        self._stack.append(container)

    def _mark(self) -> None:
        if len(self._marks) >= _MAX_DEPTH:
            self._refuse_size(f"more than {_MAX_DEPTH} containers within one another")
        self._marks.append(len(self._stack))

    def _above_mark(self) -> list[Any]:
        height = self._marks.pop()
        items = self._stack[height:]
        del self._stack[height:]
        return items

    def _top(self, count: int) -> list[Any]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - floor < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _tuple(self, count: int | None) -> None:
        self._new(tuple(self._above_mark() if count is None else self._top(count)))

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("items are appended to what is no list")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("items are set in what is no dictionary, or one has no value")
        keys = items[::2]
        for key in keys:
            if type(key) is not str and not (type(key) is int and -_KEY_LIMIT <= key < _KEY_LIMIT):
                self._refuse_size(f"a key of type {type(key).__name__} (or an integer beyond 32 bits)")
        target.update(zip(keys, items[1::2], strict=True))

    # ------------------------------------------------------------------ the memo
    # Two thirds of the instructions of a snapshot are here: it refers to its strings again and again.

    def _memoize(self) -> None:
        self._memo.append(self._stack[-1])

    def _get1(self) -> None:
        self._stack.append(self._memo[self._data[self._at]])
        self._at += 1

    def _get4(self) -> None:
        self._stack.append(self._memo[int.from_bytes(self._take(4), "little")])

    def _put(self, index: int) -> None:
        memo = self._memo
        if index > len(memo):
            self._refuse_size(f"memo entry {index} where {len(memo)} comes next")
        memo[index : index + 1] = [self._stack[-1]]

    # ------------------------------------------------------------------ the instructions

    _BY_OPCODE: ClassVar[dict[bytes, Callable[[PlainUnpickler], None]]] = {
        pickle.PROTO: _protocol,
        pickle.FRAME: _frame,
        pickle.MARK: _mark,
        pickle.NONE: lambda self: self._stack.append(None),
        pickle.NEWTRUE: lambda self: self._stack.append(True),
        pickle.NEWFALSE: lambda self: self._stack.append(False),
        pickle.BININT: _binint,
        pickle.BININT1: _binint1,
        pickle.BININT2: _binint2,
        pickle.LONG1: _long1,
        pickle.BINFLOAT: _binfloat,
        pickle.SHORT_BINUNICODE: _short_text,
        pickle.BINUNICODE: lambda self: self._text(4),
        pickle.BINUNICODE8: lambda self: self._text(8),
        pickle.EMPTY_LIST: lambda self: self._new([]),
        pickle.APPEND: lambda self: self._extend(self._top(1)),
        pickle.APPENDS: lambda self: self._extend(self._above_mark()),
        pickle.EMPTY_TUPLE: lambda self: self._new(()),
        pickle.TUPLE1: lambda self: self._tuple(1),
        pickle.TUPLE2: lambda self: self._tuple(2),
        pickle.TUPLE3: lambda self: self._tuple(3),
        pickle.TUPLE: lambda self: self._tuple(None),
        pickle.EMPTY_DICT: lambda self: self._new({}),
        pickle.SETITEM: lambda self: self._update(self._top(2)),
        pickle.SETITEMS: lambda self: self._update(self._above_mark()),
        pickle.BINPUT: lambda self: self._put(self._unsigned(1)),
        pickle.LONG_BINPUT: lambda self: self._put(self._unsigned(4)),
        pickle.MEMOIZE: _memoize,
        pickle.BINGET: _get1,
        pickle.LONG_BINGET: _get4,
    }
    _ACTIONS: ClassVar[tuple[Callable[[PlainUnpickler], None] | None, ...]] = tuple(
        map(_BY_OPCODE.get, (bytes([opcode]) for opcode in range(256)))
    )
