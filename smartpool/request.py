"""What a caller asks for, as one value."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import SupportsIndex

from smartpool.errors import InvalidRequestError, InvalidSizeError

__all__ = ["AllocationRequest", "checked_size"]


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
        Larger is more important. Checked and kept; the pool does not act on it.
    hint_lifetime
        Expected lifetime in seconds; None when unknown. Checked and kept: placement ignores lifetimes,
        because what can be foreseen of them makes it worse (``docs/elastic.md``).
    hint_access_pattern
        A word that groups requests which behave alike, such as ``"training"``. Checked and kept.
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
        if self.device_id is not None and (not _is_integer(self.device_id) or self.device_id < 0):
            raise InvalidRequestError(
                f"device_id: expected None or an integer from 0, got {self.device_id!r}"
            )
        if not _is_integer(self.priority):
            raise InvalidRequestError(f"priority: expected an integer, got {self.priority!r}")
        lifetime = self.hint_lifetime
        if lifetime is not None and not (isinstance(lifetime, int | float) and lifetime >= 0):
            raise InvalidRequestError(
                f"hint_lifetime: expected None or seconds of at least 0, got {lifetime!r}"
            )
        pattern = self.hint_access_pattern
        if pattern is not None and not isinstance(pattern, str):
            raise InvalidRequestError(f"hint_access_pattern: expected None or a string, got {pattern!r}")
        alignment = self.alignment
        if alignment is not None and not (
            _is_integer(alignment) and alignment > 0 and alignment & (alignment - 1) == 0
        ):
            raise InvalidRequestError(f"alignment: expected None or a power of two, got {alignment!r}")


def checked_size(size: SupportsIndex) -> int:
    """Return `size` as an `int` of at least 0, or raise `InvalidSizeError`.

    NumPy integers and everything else with ``__index__`` are accepted; `bool` and `float` are not.
    """
    try:
        nbytes = int(operator.index(size))  # an enumeration's members are integers, but not plain ones
    except TypeError:
        nbytes = None
    if nbytes is None or isinstance(size, bool):
        raise InvalidSizeError(
            f"expected a size in bytes as an integer, got {size!r} of type {type(size).__name__}; "
            "convert it with int(), or read text with smartpool.parse_size()"
        )
    if nbytes < 0:
        raise InvalidSizeError(
            f"expected a size of at least 0 bytes, got {nbytes}; ask for the bytes that are wanted"
        )
    return nbytes


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
