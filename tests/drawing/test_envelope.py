from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.drawing.envelope import envelope


@st.composite
def series(draw):
    events = draw(st.integers(1, 40))
    at = sorted(draw(st.lists(st.integers(0, events - 1), max_size=30)))
    values = draw(st.lists(st.integers(-(1 << 62), 1 << 62), min_size=len(at), max_size=len(at)))
    return events, at, values, draw(st.integers(1, 50))


def values_by_column(events, at, values, columns):
    """Return what the step series takes in each column, event by event: the definition."""
    columns = min(columns, events)
    taken = [[] for _ in range(columns)]
    current = 0
    for event in range(events):
        here = [value for where, value in zip(at, values, strict=True) if where == event]
        taken[event * columns // events] += here or [current]
        current = here[-1] if here else current
    return taken


@given(series())
def test_every_column_has_what_the_series_takes_in_it(one):
    events, at, values, columns = one
    reduced = envelope(at, values, events=events, columns=columns)
    taken = values_by_column(*one)
    assert reduced.columns == len(taken)
    assert reduced.low.tolist() == [min(column) for column in taken]
    assert reduced.high.tolist() == [max(column) for column in taken]
    assert reduced.last.tolist() == [column[-1] for column in taken]


def test_a_single_spike_among_a_million_events_is_kept():
    at = np.arange(1_000_000)
    value = np.zeros_like(at)
    value[777_700] = 1 << 40
    reduced = envelope(at, value, events=1_000_000, columns=900)
    assert reduced.high.max() == 1 << 40
    assert reduced.last.max() == 0
