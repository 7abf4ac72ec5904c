"""An allocator's own figures against the naive model, and against each other.

The equations, for whichever figures are there (`live` is what the model knows to be live)::

    live_bytes          ==  sum of counted(size) over live
    live_blocks         ==  how many are live, or exactly which: {address: size}
    live_bytes          <=  reserved_bytes            and  sum of sizes <= reserved_bytes
    live_bytes + free_bytes == reserved_bytes
    peak_live_bytes     ==  the largest live_bytes so far
    peak_reserved_bytes >=  reserved_bytes            and  never falls
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smartpool.errors import ConfigurationError
from smartpool.testing.contract import FIGURES, Contract

__all__ = ["Accounts", "Mismatch"]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An equation that does not hold: in words, and as Python over ``figures``."""

    detail: str
    proof: str


@dataclass(slots=True)
class Accounts:
    """What the figures must be; told of every request and free."""

    contract: Contract
    sizes: dict[int, int] = field(default_factory=dict)  # number of a block -> bytes asked for
    addresses: dict[int, int] = field(default_factory=dict)  # number of a block -> address
    counted: int = 0
    peak: int = 0
    last_peak_reserved: int = 0

    def add(self, number: int, address: int, nbytes: int) -> None:
        """Count a block that was served."""
        self.sizes[number] = nbytes
        self.addresses[number] = address
        self.counted += self.contract.counted(nbytes)
        self.peak = max(self.peak, self.counted)

    def remove(self, number: int) -> None:
        """Count a block that was freed."""
        del self.addresses[number]
        self.counted -= self.contract.counted(self.sizes.pop(number))

    def expected(self) -> dict[str, object]:
        """Return the figures that the model knows exactly."""
        return {
            "live_bytes": self.counted,
            "live_blocks": len(self.sizes),
            "peak_live_bytes": self.peak,
        }

    def mismatch(self, figures: Mapping[str, Any]) -> Mismatch | None:
        """Return the first equation that does not hold, or None."""
        unknown = set(figures) - set(FIGURES)
        if unknown:
            raise ConfigurationError(
                "accounting", f"expected figures among {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}"
            )
        for name, wanted in self.expected().items():
            if name not in figures:
                continue
            got = figures[name]
            expected: object = wanted
            if isinstance(got, Mapping):
                expected = {self.addresses[number]: size for number, size in self.sizes.items()}
            if got != expected:
                return Mismatch(f"{name} is {got}, expected {expected}", f"figures[{name!r}] == {expected}")
        return self._inequality(figures)

    def _inequality(self, figures: Mapping[str, Any]) -> Mismatch | None:
        reserved, live = figures.get("reserved_bytes"), figures.get("live_bytes", sum(self.sizes.values()))
        if reserved is not None and live > reserved:
            return Mismatch(
                f"{live} bytes are live in {reserved} bytes reserved", f"figures['reserved_bytes'] >= {live}"
            )
        free = figures.get("free_bytes")
        if free is not None and reserved is not None and live + free != reserved:
            return Mismatch(
                f"{live} bytes live + {free} free is not the {reserved} reserved",
                f"{live} + figures['free_bytes'] == figures['reserved_bytes']",
            )
        peak = figures.get("peak_reserved_bytes")
        if peak is not None:
            least = max(self.last_peak_reserved, reserved or 0)
            self.last_peak_reserved = max(self.last_peak_reserved, peak)
            if peak < least:
                return Mismatch(
                    f"peak_reserved_bytes is {peak}, and {least} were reserved",
                    f"figures['peak_reserved_bytes'] >= {least}",
                )
        return None
