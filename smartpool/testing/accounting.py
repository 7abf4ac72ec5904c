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

from collections.abc import Collection, Mapping
from typing import Any

from smartpool.errors import ConfigurationError
from smartpool.testing.contract import FIGURES, Contract
from smartpool.testing.steps import Block

__all__ = ["Accounts"]


class Accounts:
    """What the figures must be, and the peaks so far."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._peak_live = self._peak_reserved = 0

    def mismatch(self, figures: Mapping[str, Any], live: Collection[Block]) -> tuple[str, str] | None:
        """Return the first equation that does not hold, in words and as Python over ``figures``, or None.

        Called whenever what is live has changed.
        """
        unknown = set(figures) - set(FIGURES)
        if unknown:
            raise ConfigurationError(
                "accounting", f"expected figures among {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}"
            )
        counted = sum(self._contract.counted(block.nbytes) for block in live)
        self._peak_live = max(self._peak_live, counted)
        known = {"live_bytes": counted, "live_blocks": len(live), "peak_live_bytes": self._peak_live}
        for name, number in known.items():
            got = figures.get(name, number)
            exactly = {block.address: block.nbytes for block in live} if isinstance(got, Mapping) else number
            if got != exactly:
                return f"{name} is {got}, expected {exactly}", f"figures[{name!r}] == {exactly}"
        return self._inequality(figures, figures.get("live_bytes", sum(block.nbytes for block in live)))

    def _inequality(self, figures: Mapping[str, Any], live: int) -> tuple[str, str] | None:
        reserved, free = figures.get("reserved_bytes"), figures.get("free_bytes")
        if reserved is not None and live > reserved:
            return (
                f"{live} bytes are live in {reserved} bytes reserved",
                f"figures['reserved_bytes'] >= {live}",
            )
        if free is not None and reserved is not None and live + free != reserved:
            return (
                f"{live} bytes live + {free} free is not the {reserved} reserved",
                f"{live} + figures['free_bytes'] == figures['reserved_bytes']",
            )
        peak, least = figures.get("peak_reserved_bytes"), max(self._peak_reserved, reserved or 0)
        if peak is None:
            return None
        self._peak_reserved = max(self._peak_reserved, peak)
        if peak < least:
            return (
                f"peak_reserved_bytes is {peak}, and {least} were reserved",
                f"figures['peak_reserved_bytes'] >= {least}",
            )
        return None
