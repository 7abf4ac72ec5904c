"""Round numbers on axes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from smartpool.drawing.ticks import byte_ticks


@given(st.integers(0, 1 << 60))
@example(15)  # a step of 2.5 bytes
@example(1024)  # a fifth of a KiB is no whole number of bytes
def test_byte_ticks_begin_at_0_reach_the_most_and_are_few_and_even(most):
    ticks = [nbytes for nbytes, _ in byte_ticks(most)]
    assert ticks[0] == 0
    assert ticks[-1] >= most > (ticks[-2] if most else -1)
    assert 2 <= len(ticks) <= 8
    assert len({b - a for a, b in pairwise(ticks)}) == 1
    assert most > 1 << 50 or all(len(label) <= len("2.25 GiB") for _, label in byte_ticks(most))
