"""Which streams a CUDA device knows, as plain integers.

0 is the legacy default stream (1, its other name, becomes 0). A stream of ours is its handle, and so
is one that `keep` was told to last. 2, the per-thread default stream, is a different stream in every
thread, so as a key it would let one thread reuse memory that another thread's work still touches;
each thread therefore gets a token of its own for it. Used by the thread that owns it a token means that
thread's stream; used by any other thread it means the legacy default stream, which the driver
orders after all per-thread streams: slower, and right.

Any other stream is a token made of its id, which the driver never gives twice. A handle it gives again
at once, while the destroyed stream's work is still pending (49 of 50 times on an H200); a pool that took
the handle for the stream would hand the new one memory that the old one's work still touches. So a handle
from outside is asked for its id each time that it comes, and once for its context; what is not of this
device is refused. A green context is a part of the device's, and an event of that covers its streams.
Of a handle that comes back with another id the old stream is gone; nothing is kept of it, and its token is a
name for what it left behind, as is that of a thread that has ended. While a stream is being captured, asking
for its id is forbidden, and it is what it was last. A number that never was a stream cannot be told from one:
the driver itself may crash on it.

Nor can one that no longer is: a framework may destroy its stream as soon as it has freed the
memory, while the pool has yet to record an event behind that free. The streams that are known to
last (the default ones, our own, and those that `keep` was told of) are in `lasting`; no other may
be handed to the driver later than in the call that named it.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

from smartpool.driver.cuda.bindings import Bindings
from smartpool.driver.protocol import handle_of
from smartpool.errors import StreamError
from smartpool.values import shown

__all__ = ["StreamTable"]

_LEGACY = 0
_LEGACY_ALIAS = 1
_PER_THREAD = 2
_TOKENS = 1 << 56  # a token is this with a number, and three bits behind: no pointer, and no small number
_TOKEN_BITS = 7
_FOREIGN = 3  # the last bits of a token; per-thread tokens end in 2, and pointers in zeros
_JOINED = 5  # of a token that is a handle's, during a capture
_FIRST_HANDLE = 4096  # no pointer lies in the first page
_NO_HANDLE = 1 << 64


class StreamTable:
    """The streams of one context.

    Parameters
    ----------
    bindings
        The driver's functions.
    name
        The device, for messages.
    context
        The primary context's handle.
    """

    __slots__ = (
        "_ask_id",
        "_bindings",
        "_context",
        "_device",
        "_latest",
        "_legacy",
        "_name",
        "_not_captured",
        "_numbers",
        "_per_thread",
        "_thread",
        "known",
        "lasting",
        "owned",
    )

    def __init__(self, bindings: Bindings, name: str, context: int, device: int) -> None:
        self._bindings = bindings
        self._name = name
        self._context = context
        self._device = device
        self._legacy = bindings.api.CUstream(_LEGACY)
        self._per_thread = bindings.api.CUstream(_PER_THREAD)
        self.known: dict[int, Any] = {_LEGACY: self._legacy}
        self.owned: set[int] = set()
        self.lasting: set[int] = {_LEGACY}
        self._thread = threading.local()
        self._numbers = itertools.count(1)
        self._ask_id = bindings.api.cuStreamGetId
        self._latest: dict[int, int] = {}  # handle -> token, of streams of others
        self._not_captured = bindings.api.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE

    def identify(self, obj: object) -> int:
        """Return the integer for None, a handle, or an object with ``__cuda_stream__``."""
        if obj is None:
            return _LEGACY
        handle = obj if obj.__class__ is int else handle_of(obj)
        return handle if handle in self.known or _is_token(handle) else self._admit(handle)

    def add(self, stream: Any) -> int:
        """Take in a stream that the driver created here."""
        handle = int(stream)
        self.known[handle] = stream
        self.owned.add(handle)
        self.lasting.add(handle)
        return handle

    def keep(self, obj: object) -> int:
        """Take the caller's word that a stream lasts as long as the process; return its integer."""
        if isinstance(obj, int) and obj >= _FIRST_HANDLE and not obj & _TOKEN_BITS:
            if obj not in self.known:
                stream = self._bindings.api.CUstream(obj)
                self._check_context(obj, stream)
                self.known[obj] = stream
        else:
            obj = self.identify(obj)
        self.lasting.add(obj)
        return obj

    def native(self, stream: int) -> int | None:
        """Return the handle by which everybody knows a stream that lasts; None where there is none."""
        return stream if stream in self.lasting and not stream & _TOKEN_BITS else None

    def remove(self, handle: int) -> Any:
        """Forget a stream of ours and return what to destroy."""
        if handle not in self.owned:
            raise StreamError(
                f"expected a stream from create_stream of {self._name}, not destroyed, got {handle:#x}"
            )
        self.owned.discard(handle)
        self.lasting.discard(handle)
        return self.known.pop(handle)

    def handle(self, stream: int) -> Any:
        """Return the driver's object for a stream, as the calling thread means it."""
        known = self.known.get(stream)
        if known is not None:
            return known
        if self.is_gone(stream):
            raise StreamError(f"expected a stream of {self._name} that exists, {stream:#x} was destroyed")
        if _is_token(stream):
            return self._per_thread if stream == self._token() else self._legacy
        return self.handle(self._admit(stream))

    def is_gone(self, stream: int) -> bool:
        """Return whether `stream` is the token of a stream of others of which nothing is known any more."""
        return _is_token(stream) and stream & _TOKEN_BITS == _FOREIGN and stream not in self.known

    def _token(self) -> int:
        """Return the calling thread's name for its per-thread stream: no pointer ends in these bits."""
        held: _ThreadToken | None = getattr(self._thread, "token", None)
        if held is None:
            held = _ThreadToken(_token_of(next(self._numbers), _PER_THREAD), self.lasting)
            self._thread.token = held
        return held.token

    def _admit(self, handle: int) -> int:
        """Check a handle from outside and remember it."""
        if handle == _LEGACY_ALIAS:
            return _LEGACY
        if handle == _PER_THREAD:
            return self._token()
        if not _FIRST_HANDLE <= handle < _NO_HANDLE:
            number = shown(handle)
            raise StreamError(f"expected a stream of {self._name}, got {number}: no stream has that handle")
        stream = self._bindings.api.CUstream(handle)
        if self._is_captured(stream):
            return self._known_as(handle, stream)
        answer = self._ask_id(stream)
        if answer[0] is not self._bindings.success:
            raise StreamError(f"expected a stream of {self._name}, got {handle:#x}: {answer[0].name}")
        token = _token_of(int(answer[1]), _FOREIGN)
        if token not in self.known:
            self._check_context(handle, stream)
            self.known[token] = stream
        before = self._latest.get(handle, token)
        self._latest[handle] = token
        if before != token:  # the stream that had this handle exists no more
            self.known.pop(before, None)
        return token

    def _is_captured(self, stream: Any) -> bool:
        answer = self._bindings.api.cuStreamIsCapturing(stream)
        return answer[0] is self._bindings.success and answer[1] is not self._not_captured

    def _known_as(self, handle: int, stream: Any) -> int:
        """Return the token of a stream that is being captured: asking for its id would ruin the capture.

        One that joined the capture and was never seen gets a token of its handle, for the meantime.
        """
        token = self._latest.get(handle)
        if token is None:
            token = handle | _JOINED
            self.known[token] = stream
        return token

    def _check_context(self, handle: int, stream: Any) -> None:
        result = self._bindings.api.cuStreamGetCtx(stream)
        known = result[0] is self._bindings.success
        if (known and int(result[1]) == self._context) or self._is_of_green_context(stream):
            return
        why = "it is of another device" if known else result[0].name
        raise StreamError(f"expected a stream of {self._name}, got {handle:#x}: {why}")

    def _is_of_green_context(self, stream: Any) -> bool:
        """Return whether the stream is of a green context of this device: a part of its primary context."""
        success, asked = self._bindings.success, []
        for question in ("cuStreamGetGreenCtx", "cuStreamGetDevice"):
            function = getattr(self._bindings.api, question, None)  # from 12.4 and 12.8 on
            answer = function(stream) if function is not None else (None, 0)
            asked.append(int(answer[1]) if answer[0] is success else -1)
        return asked[0] > 0 and asked[1] == self._device


def _token_of(number: int, kind: int) -> int:
    return (_TOKENS | number) << 3 | kind


def _is_token(stream: int) -> bool:
    return stream >> 3 >= _TOKENS and stream & _TOKEN_BITS in {_PER_THREAD, _FOREIGN}


class _ThreadToken:
    """A thread's name for its per-thread stream, which lasts as long as the thread."""

    __slots__ = ("_lasting", "token")

    def __init__(self, token: int, lasting: set[int]) -> None:
        self.token = token
        self._lasting = lasting
        lasting.add(token)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():
            self._lasting.discard(self.token)  # from here on it means the default stream: see `StreamTable`
