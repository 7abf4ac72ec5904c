"""What an allocator promises, as one value: everything that the kit needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final

from smartpool.errors import ConfigurationError

__all__ = ["BAD_FREES", "FIGURES", "ZERO_SIZES", "Contract"]

BAD_FREES: Final = ("refused", "ignored", "undefined")
ZERO_SIZES: Final = ("distinct", "any", "refused", "undefined")
FIGURES: Final = (
    "live_bytes",
    "live_blocks",
    "free_bytes",
    "reserved_bytes",
    "peak_live_bytes",
    "peak_reserved_bytes",
)
"""What `accounting` may report; `smartpool.testing.accounting` has the equations."""


Hook = Callable[..., Any] | str
"""A function that takes the allocator first, or the name of a method of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """How to make and call an allocator, and what it promises.

    A hook (everything that is called beside the factory) is a function that takes the allocator first, or
    the name of a method: ``check="check"``, ``trim=lambda pool: pool.trim(wait=True)``.

    Parameters
    ----------
    factory
        Makes a fresh allocator: an object with ``malloc`` and ``free``, or ``allocate`` and
        ``deallocate`` (or ``free``), or a pair of callables. What a request returns may be an integer
        address, or any object whose address can be told (see `address`). With `driver`, the factory
        is given a fresh driver.
    alignment
        Every address is a multiple of it. 1: nothing is promised.
    capacity
        The most bytes that can be live at once, None where unknown. Sizes are drawn around it, so give a
        small one: refusals are where the bugs are.
    max_bytes
        The largest ordinary request; by default the capacity, or 1 MiB without one.
    errors
        What a request that cannot be served raises.
    zero_size
        What a request of no bytes gets: an address of its own (``"distinct"``), ``"any"`` result that can
        be freed, an error (``"refused"``); ``"undefined"`` never asks.
    bad_sizes
        Whether sizes that are negative or no numbers are ``"refused"`` or ``"undefined"`` (never asked).
    bad_frees
        Frees of what was freed already or never handed out: ``"refused"`` with any error, ``"ignored"``
        (nothing changes, error or not) or ``"undefined"`` (never tried: they may crash the process).
    rounding
        What a block counts in the figures: a multiple (512), or a function of the size asked for.
    must_serve
        ``must_serve(live sizes, nbytes)`` says that a request may not be refused; `nbytes` is the alignment
        where that is asked for and larger.
    refill
        Once nothing is live, a used allocator serves what a fresh one serves: the largest request that the
        capacity allows, or, where that is unknown, the largest that was served before. False for allocators
        that never join what was split.
    address
        The address of what a request returned. By default integers are addresses, and ``ptr``,
        ``pointer``, ``handle``, ``data_ptr()``, array interfaces and Python buffers are known.
    read, write
        ``read(allocator, address, nbytes)`` and ``write(allocator, address, data)``. By default the
        driver's, where there is one, and Python's buffer protocol for handles that have it. Contents are
        checked where both are known.
    streams
        Handles that requests and frees are given as ``stream=``, a function of the allocator that makes
        them, or how many to make on the driver beside its default stream. None: no stream is ever named.
    wrap_stream
        What the allocator takes for a stream, made of the driver's handle; the handle itself by default.
    record_stream
        ``record_stream(allocator, block, stream)``: the stream uses the live block too. `check_stream_order`
        then uses blocks on further streams.
    malloc_aligned
        ``malloc_aligned(allocator, nbytes, alignment)``, with ``stream=`` where there are streams.
    accounting
        Returns figures by name: any of ``live_bytes``, ``live_blocks`` (a number, or a mapping of
        addresses to sizes), ``free_bytes``, ``reserved_bytes``, ``peak_live_bytes``,
        ``peak_reserved_bytes``.
    check
        The allocator's own check of itself; raises when something is wrong.
    trim
        Gives all idle memory back; afterwards `reserved_bytes` is what it was at the start.
    upkeep
        Other operations by name (flush, trim, defragment) that must change no live block.
    close
        Called in the end.
    driver
        A device name for `smartpool.driver.open_driver` or a function that opens a driver: a fresh one is
        given to the factory each time.
    faults
        Let driver calls fail in the middle, where the driver can be told to.

    Raises
    ------
    ConfigurationError
        When a field is wrong; the message names it.

    Examples
    --------
    >>> Contract(factory=list, zero_size="maybe")
    Traceback (most recent call last):
    smartpool.errors.ConfigurationError: zero_size: expected one of ...
    """

    factory: Callable[..., Any]
    alignment: int = 1
    capacity: int | None = None
    max_bytes: int | None = None
    errors: type[BaseException] | tuple[type[BaseException], ...] = MemoryError
    zero_size: str = "any"
    bad_sizes: str = "refused"
    bad_frees: str = "refused"
    rounding: int | Callable[[int], int] = 1
    must_serve: Callable[[Sequence[int], int], bool] | None = None
    refill: bool = True
    address: Callable[[Any], int] | None = None
    read: Hook | None = None
    write: Hook | None = None
    streams: int | Sequence[object] | Callable[[Any], Sequence[object]] | None = None
    wrap_stream: Callable[[int], Any] | None = None
    record_stream: Hook | None = None
    malloc_aligned: Hook | None = None
    accounting: Hook | None = None
    check: Hook | None = None
    trim: Hook | None = None
    upkeep: Mapping[str, Hook] = field(default_factory=dict)
    close: Hook | None = None
    driver: str | Callable[[], Any] | None = None
    faults: bool = False
    learned: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.factory):
            raise ConfigurationError("factory", f"expected what makes an allocator, got {self.factory!r}")
        _one_of("zero_size", self.zero_size, ZERO_SIZES)
        _one_of("bad_sizes", self.bad_sizes, ("refused", "undefined"))
        _one_of("bad_frees", self.bad_frees, BAD_FREES)
        for name in ("alignment", "capacity", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise ConfigurationError(name, f"expected bytes above 0, got {value!r}")
        if self.alignment & (self.alignment - 1):
            raise ConfigurationError("alignment", f"expected a power of two, got {self.alignment}")
        if (self.read is None) != (self.write is None):
            raise ConfigurationError("read", "expected read and write together: contents need both")
        for name in ("faults", "streams"):
            if self.driver is None and getattr(self, name) and isinstance(getattr(self, name), int):
                raise ConfigurationError(name, "expected a driver beside it, which makes them; give driver=")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all fields, in order."""
        return tuple(each.name for each in fields(cls) if each.init)

    @property
    def largest(self) -> int:
        """The largest ordinary request."""
        return self.max_bytes or self.capacity or 1 << 20

    @staticmethod
    def bound(hook: Hook, allocator: object) -> Callable[..., Any]:
        """Return a hook as a function of what follows the allocator.

        >>> Contract.bound("count", [1, 1])(1), Contract.bound(list.count, [1, 1])(1)
        (2, 2)
        """
        if isinstance(hook, str):
            method: Callable[..., Any] = getattr(allocator, hook)
            return method
        return partial(hook, allocator)

    def counted(self, nbytes: int) -> int:
        """Return what a block of `nbytes` counts in the figures.

        >>> Contract(factory=list, rounding=512).counted(513)
        1024
        """
        if callable(self.rounding):
            return self.rounding(nbytes)
        return -(-nbytes // self.rounding) * self.rounding


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(name, f"expected one of {', '.join(allowed)}, got {value!r}")
