"""What a caller asks for, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, SupportsIndex

from smartpool.errors import InvalidRequestError, InvalidSizeError
from smartpool.values import as_integer, as_number, shown

__all__ = ["ACCESS_PATTERNS", "LONG_LIVED", "AllocationRequest", "Shape", "checked_alignment", "checked_size"]

Shape = SupportsIndex | Sequence[SupportsIndex]
"""What stands for the shape of an array: a length, or a sequence of lengths."""

ACCESS_PATTERNS: Final = (
    "evaluation", "inference", "mixed", "persistent", "random", "sequential", "streaming", "temporary",
    "training", "weights",
)  # fmt: skip
"""What `AllocationRequest.hint_access_pattern` may say."""

LONG_LIVED: Final = 3600.0
"""Seconds of `AllocationRequest.hint_lifetime` from which a block is placed with what lives long."""


_APART: Final = ("persistent", "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRequest:
    """One request for memory.

    Parameters
    ----------
    size
        Bytes wanted, at least 0. A request of 0 bytes gets an address of its own all the same.
    device_id
        Number of the device among those of the pool; None for the one with most free memory.
    stream
        The stream on which the memory will first be used; None for the device's default stream.
    priority
        Larger is more important. Below 0 the request is refused where less would be left than the share of
        memory above `SmartPoolConfig.memory_pressure_threshold`: others find that.
    hint_lifetime
        Expected lifetime in seconds; None when unknown. From `LONG_LIVED` on, the block is placed apart,
        in chunks of what lives long. Below, placement ignores it: what can be foreseen of short lives makes
        it worse (``docs/elastic.md``).
    hint_access_pattern
        What the memory is for, or how it is read: one of `ACCESS_PATTERNS`, such as ``"training"`` or
        ``"sequential"``; None when unknown. What is ``"persistent"`` or ``"weights"`` is placed apart, in
        chunks of its own; the others are checked and kept.
    alignment
        A power of two; None for the pool's own (512 bytes).

    Raises
    ------
    InvalidSizeError
        When the size is negative or not an integer.
    InvalidRequestError
        When any other field is out of its range; the message names the field.

    Examples
    --------
    >>> AllocationRequest(size=10 << 20, device_id=0, priority=1, hint_access_pattern="training").size
    10485760
    """

    size: int
    device_id: int | None = None
    stream: object = None
    priority: int = 0
    hint_lifetime: float | None = None
    hint_access_pattern: str | None = None
    alignment: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checked_size(self.size))
        if self.device_id is not None and self._keep_integer("device_id", "None or an integer from 0") < 0:
            raise InvalidRequestError(
                f"device_id: expected None or an integer from 0, got {shown(self.device_id)}"
            )
        self._keep_integer("priority", "an integer")
        lifetime = self.hint_lifetime
        if lifetime is not None:
            seconds = as_number(lifetime)
            if seconds is None or not seconds >= 0:
                raise InvalidRequestError(
                    f"hint_lifetime: expected None or seconds of at least 0, got {shown(lifetime)}"
                )
            object.__setattr__(self, "hint_lifetime", seconds)
        if self.hint_access_pattern is not None:
            _check_pattern(self.hint_access_pattern)
        if self.alignment is not None:
            object.__setattr__(self, "alignment", checked_alignment(self.alignment))

    @property
    def apart(self) -> str | None:
        """The kind of memory that the block is to lie in, by its hints; None for that of all others."""
        if self.hint_access_pattern in _APART:
            return self.hint_access_pattern
        return "persistent" if self.hint_lifetime is not None and self.hint_lifetime >= LONG_LIVED else None

    def _keep_integer(self, name: str, wanted: str) -> int:
        """Keep a field as a plain `int`, and return it."""
        number = as_integer(getattr(self, name))
        if number is None:
            raise InvalidRequestError(f"{name}: expected {wanted}, got {getattr(self, name)!r}")
        object.__setattr__(self, name, number)
        return number


def checked_size(size: SupportsIndex) -> int:
    """Return `size` as an `int` of at least 0, or raise `InvalidSizeError`.

    NumPy integers and everything else with ``__index__`` are accepted; `bool` and `float` are not.
    """
    nbytes = as_integer(size)
    if nbytes is None:
        raise InvalidSizeError(
            f"expected a size in bytes as an integer, got {size!r} of type {type(size).__name__}; "
            "convert it with int(), or read text with smartpool.parse_size()"
        )
    if nbytes < 0:
        raise InvalidSizeError(
            f"expected a size of at least 0 bytes, got {shown(nbytes)}; ask for the bytes that are wanted"
        )
    return nbytes


def checked_alignment(alignment: SupportsIndex) -> int:
    """Return `alignment` as an `int` that is a power of two, or raise `InvalidRequestError`."""
    number = as_integer(alignment)
    if number is None or number <= 0 or number & (number - 1):
        raise InvalidRequestError(f"alignment: expected a power of two, got {shown(alignment)}")
    return number


def _check_pattern(pattern: object) -> None:
    if not isinstance(pattern, str) or pattern not in ACCESS_PATTERNS:
        near = get_close_matches(str(pattern), ACCESS_PATTERNS, 1)
        advice = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(map(repr, ACCESS_PATTERNS))
        raise InvalidRequestError(
            f"hint_access_pattern: expected None or one of {known}, got {pattern!r}{advice}"
        )
