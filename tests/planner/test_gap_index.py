"""The gap index against a set of occupied bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartpool.planner.gap_index import GapIndex, Side

SIZES = st.integers(1, 12)
ENDS = st.integers(0, 20)


class GapMachine(RuleBasedStateMachine):
    """Every operation, after which the index must know exactly the bytes that are not live."""

    @initialize(
        ceiling=st.integers(0, 40), side=st.sampled_from(Side), bounds=st.sampled_from([(), (3,), (2, 5, 9)])
    )
    def start(self, ceiling, side, bounds):
        self.ceiling = ceiling
        self.live = {}
        self.index = GapIndex((), ceiling=ceiling, shift=16, class_bounds=bounds, side=side)

    def _occupied(self):
        return {byte for low, high in self.live.items() for byte in range(low, high)}

    def _place(self, low, size):
        assert low >= 0
        assert not self._occupied() & set(range(low, low + size))
        self.live[low] = low + size

    @rule(size=SIZES, end=ENDS)
    def take(self, size, end):
        fitting = [high - low for low, high in self.index.gaps() if high - low >= size]
        before = self.index.gaps()
        low = self.index.take(size, end)
        if fitting:
            held = next((lo, hi) for lo, hi in before if lo <= low < hi)
            assert held[1] - held[0] == min(fitting)
        self._place(low, size)

    @rule(
        size=SIZES,
        end=ENDS,
        alignment=st.sampled_from([1, 2, 4, 8]),
        barred=st.lists(st.tuples(st.integers(0, 60), SIZES), max_size=3),
    )
    def take_avoiding(self, size, end, alignment, barred):
        blocked = sorted((low, low + width) for low, width in barred)
        low = self.index.take_avoiding(size, end, alignment, blocked)
        assert low % alignment == 0
        assert all(low >= high or low + size <= start for start, high in blocked)
        self._place(low, size)

    @rule(low=st.integers(0, 60), size=SIZES, end=ENDS)
    def occupy(self, low, size, end):
        if not self._occupied() & set(range(low, low + size)):
            self.index.occupy(low, low + size, end)
            self._place(low, size)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def give(self, data):
        low = data.draw(st.sampled_from(sorted(self.live)))
        self.index.give(low, self.live.pop(low))

    @invariant()
    def knows_what_is_free(self):
        if not hasattr(self, "index"):
            return
        self.index.check()
        highest = max([self.ceiling, *self.live.values()])
        assert self.index.top == highest
        free = {byte for low, high in self.index.gaps() for byte in range(low, high)}
        assert free == set(range(highest)) - self._occupied()


TestGapIndex = GapMachine.TestCase
TestGapIndex.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.lists(st.tuples(SIZES, st.integers(0, 5)), max_size=8), st.integers(0, 50))
def test_starts_with_the_live_ranges(pieces, ceiling):
    live, at = [], 0
    for size, gap in pieces:
        live.append((at + gap, at + gap + size, 1))
        at += gap + size
    index = GapIndex(live, ceiling=ceiling, shift=16)
    index.check()
    assert index.top == max(ceiling, at)
