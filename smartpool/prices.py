"""Prices: what the calls of a driver take, as a value that policies compute with.

A call costs a line, ``base + per_mib * MiB`` microseconds: nearly all of it is the base, whatever
the size, except that giving memory back takes longer the more it is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from smartpool.errors import ConfigurationError
from smartpool.units import MiB

__all__ = ["Cost", "Prices"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of a call.

    Parameters
    ----------
    base
        However long the call is.
    per_mib
        For each MiB of it.

    Examples
    --------
    >>> round(Cost(14.0, 0.63).seconds(2 << 20) * 1e6, 3)
    15.26
    """

    base: float
    per_mib: float = 0.0

    def seconds(self, nbytes: int = 0) -> float:
        """Return the cost in seconds of a call over `nbytes`."""
        return (self.base + self.per_mib * nbytes / MiB) * 1e-6

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.base + other.base, self.per_mib + other.per_mib)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What the virtual-memory calls of one device cost, for each chunk.

    Parameters
    ----------
    create, release
        Taking physical memory from the device, and giving it back.
    map, access
        Mapping a chunk, and enabling access to it.
    unmap
        Taking a mapping away.

    Raises
    ------
    ConfigurationError
        When a price is not a `Cost`, or is negative.

    Examples
    --------
    >>> prices = Prices(
    ...     create=Cost(12.5), map=Cost(2), access=Cost(30), unmap=Cost(19), release=Cost(14, 0.7)
    ... )
    >>> prices.grow(2, 64 << 20), prices.show(3, 64 << 20), round(prices.give_back(1, 10 << 20))
    (89.0, 96.0, 40)
    """

    create: Cost
    map: Cost
    access: Cost
    unmap: Cost
    release: Cost

    def __post_init__(self) -> None:
        for field in fields(self):
            cost = getattr(self, field.name)
            if not isinstance(cost, Cost) or cost.base < 0 or cost.per_mib < 0:
                raise ConfigurationError(
                    "prices", f"expected a Cost of at least 0 microseconds for {field.name}, got {cost!r}"
                )

    def grow(self, chunks: int, nbytes: int) -> float:
        """Return the microseconds for `nbytes` in `chunks` new chunks, mapped and accessible."""
        return _total(self.create + self.map + self.access, chunks, nbytes)

    def show(self, chunks: int, nbytes: int) -> float:
        """Return the microseconds for mapping `chunks` chunks that exist a second time."""
        return _total(self.map + self.access, chunks, nbytes)

    def give_back(self, chunks: int, nbytes: int) -> float:
        """Return the microseconds for unmapping and releasing `chunks` chunks."""
        return _total(self.unmap + self.release, chunks, nbytes)

    def scaled(self, **factors: float) -> Prices:
        """Return these prices with those that are named multiplied.

        >>> prices = Prices(create=Cost(12), map=Cost(2), access=Cost(30), unmap=Cost(19), release=Cost(14))
        >>> prices.scaled(map=2, access=2).show(1, 0)
        64.0
        """
        return Prices(
            **{
                field.name: Cost(cost.base * factor, cost.per_mib * factor)
                for field in fields(self)
                for cost, factor in [(getattr(self, field.name), factors.get(field.name, 1))]
            }
        )


def _total(cost: Cost, chunks: int, nbytes: int) -> float:
    return cost.base * chunks + cost.per_mib * nbytes / MiB
