"""What the tests of importers share."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

DATA = Path(__file__).parents[2] / "data"


SNAPSHOT = DATA / "inputs" / "torch_snapshot.pickle"


RMM_LOG = DATA / "inputs" / "rmm_log.csv"


@st.composite
def histories(draw):
    """A program as (allocates, slot, size, stream): slots come again after they were freed."""
    live, events = {}, []
    for _ in range(draw(st.integers(0, 30))):
        slot = draw(st.integers(0, 9))
        if slot in live:
            size, stream = live.pop(slot)
            events.append((False, slot, size, stream))
        else:
            live[slot] = draw(st.integers(1, 2**40)), draw(st.sampled_from([0, 0x55D0, 0x66E0]))
            events.append((True, slot, *live[slot]))
    return events


def live_curve(events):
    total, curve = 0, []
    for allocates, _, size, _ in events:
        total += size if allocates else -size
        curve.append(total)
    return curve
