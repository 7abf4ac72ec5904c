"""Policies: what a pool pays for with bytes, and what with driver calls.

A new chunk costs about 45 us (create, map, enable access), showing one a second time 32 (map,
enable access); its size hardly matters. So large chunks save calls; but the free part in the
middle of a chunk is of use to nobody, so large chunks cost bytes. The other knob is the *slack*:
reserved memory may grow unasked up to ``(1 + slack)`` times the largest live bytes so far. Below
that peak a waste takes nothing from anyone; above it, free pieces are stitched together, unless
that costs more than the bytes are worth.

Three choices are made by the driver's prices (`smartpool.prices`):

* how large chunks are. With chunks of a share c, a run makes about a/c calls and wastes about b·c
  bytes, so the sum is least where c is proportional to the square root of a call's price. The numbers
  below hold for the reference's prices; `Policy.priced` moves them by powers of two: chunks whose
  sizes halve into each other fit into each other's places, and the noise of a measurement moves nothing;
* whether to grow or to stitch beyond the budget (`Policy.growing_pays`);
* which pieces make a window (`smartpool.heap.stitch`).

All policies lie on one axis, from 0 (``tight``) by way of 0.5 (``balanced``) to 1 (``fast``), and
every number on it is a policy. `docs/elastic.md` has the measurements behind the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from smartpool.config import POLICIES
from smartpool.heap.pricing import REFERENCE
from smartpool.prices import Prices
from smartpool.units import KiB, MiB

__all__ = ["POLICY_OF_NAME", "Policy", "policy_of"]

_MOST_OCTAVES: Final = 3  # beyond a factor of 8 in size nothing was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers of one policy.

    Parameters
    ----------
    slack
        Share of the largest live bytes so far by which reserved memory may exceed it unasked.
    chunk_share, smallest_chunk
        A chunk is at most this share of the largest live bytes so far, or `smallest_chunk` bytes
        if that is more.
    cap_share
        A chunk is at most this share of the pool's cap, so that little is lost to the parts of
        chunks when the cap is nearly reached.
    ahead
        Growing takes at least this share of the largest live bytes at once, within the budget.
    slab_limit, slab_bytes
        Requests below `slab_limit` bytes are placed in slabs of `slab_bytes`.
    edge_price
        Microseconds a MiB that it is worth to use up the edge of a chunk in a window.
    mib_price
        Microseconds that it is worth not to reserve a MiB beyond the budget.
    prices
        What the driver's calls cost.
    """

    slack: float
    chunk_share: float
    smallest_chunk: int
    cap_share: float = 1 / 512
    ahead: float = 0.0
    slab_limit: int = 64 * KiB
    slab_bytes: int = 2 * MiB
    edge_price: float = 4.0
    mib_price: float = math.inf
    prices: Prices = REFERENCE

    def priced(self, prices: Prices) -> Policy:
        """Return the policy of the same intent for a device with these prices.

        Chunks grow with the square root of what a new and a shown one cost, by powers of two.

        >>> from smartpool.heap.pricing import REFERENCE
        >>> dear = POLICY_OF_NAME["balanced"].priced(REFERENCE.scaled(create=4, map=4, access=4))
        >>> dear.smallest_chunk / POLICY_OF_NAME["balanced"].smallest_chunk
        2.0
        """
        call = prices.grow(1, 0) + prices.show(1, 0)
        reference = REFERENCE.grow(1, 0) + REFERENCE.show(1, 0)
        octaves = math.log2(call / reference) / 2 if call else -_MOST_OCTAVES
        octaves = max(-_MOST_OCTAVES, min(_MOST_OCTAVES, octaves))
        factor = 2.0 ** round(octaves)
        return replace(
            self,
            prices=prices,
            chunk_share=self.chunk_share * factor,
            smallest_chunk=int(self.smallest_chunk * factor),
        )

    def budget_bytes(self, peak_live_bytes: int) -> int:
        """Return the reserved bytes up to which growing is free."""
        return int((1 + self.slack) * peak_live_bytes)

    def growing_pays(
        self, missing: int, create: int, shown: int, *, chunk_bytes: int, budget_bytes: int, block_bytes: int
    ) -> bool:
        """Return whether to create `missing` bytes rather than to stitch, for a block of `block_bytes`.

        Stitching would create `create` bytes and show `shown` chunks that exist; `budget_bytes` may
        be created unasked, in chunks of up to `chunk_bytes`.
        """
        if create >= missing:
            return True
        prices = self.prices
        made = -(-create // chunk_bytes)
        window = prices.show(shown + made, block_bytes) if shown + made > 1 else 0.0
        stitching = window + prices.grow(made, create)
        growing = prices.grow(-(-missing // chunk_bytes), missing)
        bytes_more = max(0, missing - budget_bytes) - max(0, create - budget_bytes)
        return growing + self.mib_price * bytes_more / MiB < stitching

    def largest_chunk(self, *, peak_live_bytes: int, cap_bytes: int, granularity: int) -> int:
        """Return the size that no chunk may exceed now, a multiple of the granularity."""
        largest = max(self.smallest_chunk, int(self.chunk_share * peak_live_bytes))
        largest = min(largest, int(self.cap_share * cap_bytes))
        return max(largest // granularity * granularity, granularity)

    def cut(self, size: int, *, peak_live_bytes: int, cap_bytes: int, granularity: int) -> list[int]:
        """Return the sizes of chunks that together make `size` bytes, as even as the granularity allows.

        >>> MiB = 1 << 20
        >>> policy = Policy(slack=0, chunk_share=0.1, smallest_chunk=4 * MiB)
        >>> cut = policy.cut(14 * MiB, peak_live_bytes=0, cap_bytes=1 << 40, granularity=2 * MiB)
        >>> [part // MiB for part in cut]
        [4, 4, 4, 2]
        """
        largest = self.largest_chunk(
            peak_live_bytes=peak_live_bytes, cap_bytes=cap_bytes, granularity=granularity
        )
        parts, left = [], -(-size // largest)
        while size:
            part = min(size, -(-size // (left * granularity)) * granularity)
            parts.append(part)
            size -= part
            left -= 1
        return parts


def policy_of(policy: str | float) -> Policy:
    """Return a policy by its name, or by its place on the axis from 0 (tight) to 1 (fast).

    Between two measured places sizes and prices go by equal factors, sizes down to a power of two, and
    shares of the budget by equal differences.

    >>> policy_of(0.5) is policy_of("balanced")
    True
    >>> policy_of(0.75).smallest_chunk / MiB
    4.0
    """
    place = POLICIES[policy] if policy in POLICIES else float(policy)
    if place in _AXIS:
        return _AXIS[place]
    upper = min(measured for measured in _AXIS if measured > place)
    lower = max(measured for measured in _AXIS if measured < place)
    share = (place - lower) / (upper - lower)
    low, high = _AXIS[lower], _AXIS[upper]
    return Policy(
        slack=_between(low.slack, high.slack, share),
        ahead=_between(low.ahead, high.ahead, share),
        chunk_share=_power_of_two(_by_factor(low.chunk_share, high.chunk_share, share)),
        smallest_chunk=int(_power_of_two(_by_factor(low.smallest_chunk, high.smallest_chunk, share))),
        edge_price=_by_factor(low.edge_price, high.edge_price, share),
        mib_price=_by_factor(low.mib_price, high.mib_price, share),
    )


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _power_of_two(value: float) -> float:
    """Return the largest power of two that is not above `value`."""
    return 2.0 ** math.floor(math.log2(value) + 1e-9)


def _by_factor(low: float, high: float, share: float) -> float:
    return float(low * (high / low) ** share)


_SMALLEST_SHARE: Final = 2.0**-16  # 2 MiB of 128 GiB: as good as none

_AXIS: Final = {
    0.0: Policy(
        slack=0.0, chunk_share=_SMALLEST_SHARE, smallest_chunk=2 * MiB, edge_price=20.0, mib_price=1e5
    ),
    0.5: Policy(
        slack=0.004, chunk_share=1 / 96, smallest_chunk=2 * MiB, ahead=0.004, edge_price=8.0, mib_price=1e4
    ),
    1.0: Policy(
        slack=0.02, chunk_share=1 / 20, smallest_chunk=16 * MiB, ahead=0.02, edge_price=8.0, mib_price=10.0
    ),
}
"""The places whose numbers were measured; what lies between follows. `config.POLICIES` names places."""

POLICY_OF_NAME: Final = {name: policy_of(name) for name in POLICIES}
