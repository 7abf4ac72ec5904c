"""The driver protocol: the thing that owns memory, as the pool sees it.

Three implementations (`cuda:N`, `cpu`, `model:SIZE`) pass one contract test suite
(`tests/driver/test_contract.py`). Addresses, sizes, streams, events and chunk handles are plain
integers, because the hot paths above compare and store millions of them; each means something
only to the driver that gave it.

The calls follow the CUDA driver's virtual-memory interface, because it is the strictest of the
three: a chunk is mapped whole or not at all; access is enabled after every map; sizes and
addresses are multiples of `granularity`; the range that is unmapped covers whole mappings (holes
between them are allowed). What CUDA would refuse, the other drivers refuse too, so that a test on
a laptop means something.

Failure. A call either does what it says or raises and changes nothing. `unmap` and
`enable_access` over several mappings are one call and one outcome. `DriverOutOfMemoryError` is
raised by `allocate`, `create_chunk` and `allocate_host` alone; a wrong argument, and every failure that the
device reports, is a `DriverError` with the call, its arguments and the driver's code. After a
*sticky* failure (CUDA: the context is lost) every later call fails with the same code.

Ordering. `fill` and `copy` are asynchronous with respect to the host and in order within a
stream. Everything else that touches memory (`free`, `unmap`, `release_chunk`) acts at once: the
caller must know by events that the device is done with it. `free` may block until it is. Work
that is still pending when its memory is unmapped loses the device, or, where something else was
mapped there meanwhile, writes into that (both were seen on an H200; the host drivers do the same).

Threads. Every method may be called from any thread, without other set-up: a driver makes its
context current on the calling thread itself, and leaves another library's where it found it. A
driver is not re-entrant: a finaliser or signal handler that runs in the middle of a call must not
call the driver, but queue what it wants done.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, SupportsIndex, runtime_checkable

from smartpool.errors import ConfigurationError, DriverError, StreamError
from smartpool.values import as_integer, shown

__all__ = [
    "Driver",
    "MappedRange",
    "MemoryInfo",
    "Stream",
    "check_driver",
    "handle_of",
    "looks_like_driver",
    "refusal",
]


class HasStream(Protocol):
    """An object that stands for a CUDA stream: of cuda.core, CuPy, Numba or PyTorch, or one of ours."""

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return 0, the version of this protocol, and the stream's handle."""


Stream = SupportsIndex | HasStream | None
"""What stands for a stream: its handle, an object that has one, or None for the default stream."""


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Physical memory of a device in bytes: what is free now, and all there is."""

    free: int
    total: int


class MappedRange(NamedTuple):
    """A chunk mapped at an address."""

    address: int
    size: int
    chunk: int


@runtime_checkable
class Driver(Protocol):
    """One device's memory, streams and events.

    Attributes
    ----------
    name
        The canonical device name: ``"cuda:0"``, ``"cpu"``, ``"model:80GiB"``.
    dl_device
        DLPack's device: ``(device type, device number)``; ``(1, 0)`` for `cpu`, ``(2, N)`` for
        ``cuda:N``. `model` has no memory to read and says ``(12, 0)`` (kDLExtDev): its buffers
        cannot be exported.
    granularity
        Bytes; chunk sizes, mapping addresses and reservations are multiples of it. 0 where the
        platform has no virtual memory calls: those then raise `UnsupportedError`.
    default_stream
        The stream that None stands for: 0 on every driver (CUDA's legacy default stream).
    calls
        How often each call of this protocol reached the driver, failed calls included.
    seconds
        What the calls cost: modeled on `model`, measured elsewhere.
    """

    name: str
    dl_device: tuple[int, int]
    granularity: int
    default_stream: int
    calls: Counter[str]

    @property
    def seconds(self) -> float:
        """What the calls cost so far."""

    # --- raw memory ---

    def memory_info(self) -> MemoryInfo:
        """Return free and total physical bytes."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` > 0 fresh bytes, aligned to 512 at least.

        Raises `DriverOutOfMemoryError` when the device cannot hold them.
        """

    def free(self, address: int) -> None:
        """Give back what `allocate` returned. May block until the device is idle."""

    # --- memory of the host ---

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` > 0 bytes of the host, pinned: the device reads and writes them."""

    def free_host(self, address: int) -> None:
        """Give back what `allocate_host` returned, once no copy is under way."""

    def copy_to_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes of the device into memory from `allocate_host`."""

    def copy_from_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes of memory from `allocate_host` to the device."""

    # --- virtual memory ---

    def reserve(self, size: int) -> int:
        """Return the base of a fresh range of `size` addresses with no memory behind them."""

    def unreserve(self, address: int, size: int) -> None:
        """Give back a whole reservation; nothing may be mapped in it."""

    def create_chunk(self, size: int) -> int:
        """Return a handle of `size` bytes of physical memory, mapped nowhere."""

    def release_chunk(self, chunk: int) -> None:
        """Give the chunk's memory back. It must not be mapped anywhere."""

    def map_chunk(self, address: int, chunk: int) -> None:
        """Map the whole chunk at `address`, inside one reservation, where nothing is mapped.

        A chunk may be mapped at several addresses at once; they show the same bytes. Touching the
        memory before `enable_access` is an error of the program (a fault on real devices).
        """

    def enable_access(self, address: int, size: int) -> None:
        """Let this device read and write [address, address + size), which must be mapped all over."""

    def unmap(self, address: int, size: int) -> None:
        """Unmap all chunks mapped in [address, address + size). None may stick out of the range."""

    # --- chunks of several processes ---

    def share_chunks(self) -> None:
        """Make chunks that are created from now on exportable.

        Raises `UnsupportedError` where memory cannot be given to another process.
        """

    def export_chunk(self, chunk: int) -> int:
        """Return a new file descriptor that stands for the chunk's memory; the caller closes it.

        The memory lives as long as a process holds the chunk, a mapping of it, or a descriptor.
        """

    def import_chunk(self, descriptor: int, size: int) -> int:
        """Return a handle of the chunk behind a descriptor, to be mapped and released as one's own.

        `size` is the chunk's. The descriptor stays the caller's, who may close it at once.
        """

    # --- streams and events ---

    def stream(self, obj: object) -> int:
        """Return the stream handle that `obj` stands for.

        None is the default stream, an integer is a handle, anything with ``__cuda_stream__`` (on
        CUDA) is asked. Raises `StreamError` for everything else, and for streams of others. Equal
        results are one stream, on whichever thread: CUDA's per-thread default stream (2) becomes a
        number of its own for each thread, and a stream that somebody else made one that no later
        stream has. What it returns may be passed to it again.
        """

    def native_stream(self, stream: int) -> int | None:
        """Return the handle by which other libraries know a stream that lasts; None where there is none."""

    def create_stream(self) -> int:
        """Return a new stream that does not synchronize with the default stream."""

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream from `create_stream`; its pending work still completes."""

    def synchronize(self, stream: int | None = None) -> None:
        """Block until all work of `stream` (None: of the whole device) is done."""

    def create_event(self) -> int:
        """Return a new event. Until it is recorded it counts as done."""

    def destroy_event(self, event: int) -> None:
        """Destroy an event; waits already queued on it are unaffected."""

    def record_event(self, event: int, stream: int) -> None:
        """Make `event` stand for all work queued on `stream` up to now, replacing an earlier record."""

    def event_done(self, event: int) -> bool:
        """Return whether the work that the event stands for is done. Never blocks."""

    def wait_event(self, stream: int, event: int) -> None:
        """Make later work on `stream` wait, on the device, for what the event stands for now."""

    def synchronize_event(self, event: int) -> None:
        """Block the host until the event is done."""

    # --- captures of graphs ---

    def is_capturing(self, stream: int) -> int:
        """Return the id of the capture that `stream` is in, 0 for none. Asking never harms the capture."""

    def beside_capture(self) -> AbstractContextManager[None]:
        """Let this thread make calls that a capture under way would forbid.

        What runs inside is not captured, and must not depend on captured work.
        """

    # --- data ---

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Queue on `stream`: set `size` bytes to `value` (0-255)."""

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes that do not overlap, within this device."""

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes as the host sees them, after all queued work is done. For tests."""

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address` after all queued work is done. For tests."""

    # --- life ---

    def held(self) -> dict[str, int]:
        """Return how much callers hold: raw, raw_bytes, reservations, chunks, chunk_bytes, host_bytes.

        And mappings, where the driver keeps a book of them (`cpu`, `model`, and what is checked).
        """

    def check(self) -> None:
        """Raise `InvariantError` unless the driver's books are sound. O(held)."""

    def close(self) -> None:
        """Take no new memory, streams or events: such calls raise `DriverError`, code ``CLOSED``.

        What callers hold stays theirs and is given back as before; the driver's own resources go
        with the last of it. Idempotent.
        """


_MEMBERS: Final = frozenset(name for name in {**Driver.__annotations__, **vars(Driver)} if name[0] != "_")
_FEW: Final = 2


def looks_like_driver(thing: object) -> bool:
    """Return whether `thing` is meant to be a driver: it has some members of the protocol."""
    return sum(hasattr(thing, name) for name in _MEMBERS) >= _FEW


def check_driver(driver: object) -> None:
    """Raise `ConfigurationError` unless `driver` has every member of the protocol; it names those missing.

    >>> class Half:
    ...     name = "half:0"
    ...     def memory_info(self): ...
    >>> check_driver(Half())
    Traceback (most recent call last):
    smartpool.errors.ConfigurationError: driver: expected every member of smartpool.driver.Driver, got ...
    """
    missing = sorted(name for name in _MEMBERS if not hasattr(driver, name))
    if missing:
        raise ConfigurationError(
            "driver",
            f"expected every member of smartpool.driver.Driver, got {driver!r} without {', '.join(missing)}",
        )


def handle_of(obj: object) -> int:
    """Return the stream handle that `obj` is, or gives by ``__cuda_stream__``; `StreamError` otherwise."""
    handle = as_integer(obj)
    if handle is not None:
        return handle
    asked = getattr(obj, "__cuda_stream__", None)
    answer = asked() if callable(asked) else asked
    if isinstance(answer, tuple) and len(answer) == 2 and as_integer(answer[0]) == 0:
        handle = as_integer(answer[1])
    if handle is None:
        raise StreamError(
            "expected None, a stream handle, or an object whose __cuda_stream__ gives (0, handle), "
            f"got {shown(obj)}" + (f", which gives {shown(answer)}" if asked is not None else "")
        )
    return handle


def refusal(call: str, advice: str, **arguments: object) -> DriverError:
    """Return the error for arguments that break the protocol's rules."""
    return DriverError(call, "INVALID_VALUE", arguments, advice=advice)
