"""What debug mode does: chosen in the configuration, or by the environment variable ``SMARTPOOL_DEBUG``."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Final

from smartpool.errors import ConfigurationError, InvalidSizeError
from smartpool.units import MiB, parse_size
from smartpool.values import as_integer, shown

__all__ = ["VARIABLE", "DebugOptions"]

VARIABLE: Final = "SMARTPOOL_DEBUG"

_OFF: Final = ("", "0", "off", "no", "false")
_ON: Final = ("1", "on", "yes", "true")
_GUARD_STEP: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugOptions:
    """How a pool in debug mode looks for overruns, uses after free, and leaks.

    Parameters
    ----------
    guard_bytes
        Bytes before and behind each block that nobody may write, rounded up to 512; 0 for none.
    poison
        Fill freed blocks, and look whether somebody wrote into them before they are reused.
    quarantine_bytes
        Freed blocks up to so many bytes are kept from reuse, the oldest let go first; 0 for none.
    check_bytes
        Of a freed block, at most so many bytes are looked at, half of them at either end.
    stack_depth
        Frames of the Python stack that are kept of each request and free.
    leaks
        Report what is live when the pool is closed.

    Examples
    --------
    >>> DebugOptions.parse("poison=0, quarantine_bytes=1GiB").quarantine_bytes
    1073741824
    >>> DebugOptions.parse("1") == DebugOptions(), DebugOptions.parse("0")
    (True, None)
    """

    guard_bytes: int = 512
    poison: bool = True
    quarantine_bytes: int = 64 * MiB
    check_bytes: int = 16 * MiB
    stack_depth: int = 12
    leaks: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = as_integer(value)
            good = isinstance(value, bool) if field.type == "bool" else number is not None and number >= 0
            if not good:
                kind = "True or False" if field.type == "bool" else "an integer of at least 0"
                raise ConfigurationError("debug", f"{field.name}: expected {kind}, got {shown(value)}")
            object.__setattr__(self, field.name, value if number is None else number)
        rounded = -(-self.guard_bytes // _GUARD_STEP) * _GUARD_STEP
        object.__setattr__(self, "guard_bytes", rounded)

    @classmethod
    def parse(cls, text: str) -> DebugOptions | None:
        """Return the options that `text` names: ``1``, ``0``, or ``name=value`` with commas between."""
        plain = text.strip().lower()
        if plain in _OFF:
            return None
        if plain in _ON:
            return cls()
        known = {field.name: field.type for field in fields(cls)}
        values: dict[str, int | bool] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise ConfigurationError(
                    "debug",
                    f"expected 1, 0 or NAME=VALUE with a name of {', '.join(known)}, got {part.strip()!r}",
                )
            values[name] = _flag(name, value) if known[name] == "bool" else _size(name, value)
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def from_environment(cls) -> DebugOptions | None:
        """Return what ``SMARTPOOL_DEBUG`` asks for; None where it asks for nothing."""
        return cls.parse(os.environ.get(VARIABLE, ""))


def _flag(name: str, value: str) -> bool:
    plain = value.lower()
    if plain not in (*_ON, *_OFF[1:]):
        raise ConfigurationError("debug", f"{name}: expected 1 or 0, got {value!r}")
    return plain in _ON


def _size(name: str, value: str) -> int:
    try:
        return parse_size(value)
    except InvalidSizeError as error:
        raise ConfigurationError("debug", f"{name}: {error}") from None
