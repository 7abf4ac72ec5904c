"""What the tests of exporters share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from smartpool.trace import Trace

SNAPSHOT = Path(__file__).parents[2] / "data" / "inputs" / "torch_snapshot.pickle"


SITES = ["model.py:10 forward\ntrain.py:3 <module>", 'a "quoted", one.py:1 f', "no place at all"]


@st.composite
def traces(draw) -> Trace:
    """Traces as importers make them: dense ids, streams numbered as they come, disjoint addresses."""
    places, sites = draw(st.booleans()), draw(st.booleans())
    live: dict[int, tuple[int, int, int, int]] = {}
    rows, streams, time, made, base = [], {}, 0, 0, 1 << 30
    for _ in range(draw(st.integers(1, 25))):
        time += draw(st.integers(0, 3))
        if live and draw(st.booleans()):
            number = draw(st.sampled_from(sorted(live)))
            size, stream, address, site = live.pop(number)
            rows.append((1, number, size, stream, time if rows else 0, address, site))
        else:
            size = draw(st.one_of(st.integers(1, 5000), st.integers(1, 1 << 33)))
            stream = draw(st.sampled_from("abc"))
            live[made] = size, streams.setdefault(stream, len(streams)), base, draw(st.integers(-1, 2))
            rows.append((0, made, *live[made][:2], time if rows else 0, *live[made][2:]))
            made += 1
            base += -(-size // 512) * 512 + draw(st.sampled_from([0, 512, 8 << 20]))
    op, number, size, stream, time_us, address, site = zip(*rows, strict=True)
    return Trace.from_columns(
        "t",
        op=op, id=number, size=size, stream=stream, t_us=np.array(time_us) - time_us[0],
        address=address if places else None,
        site=site if sites else None,
        meta={"sites": SITES} if sites else None,
    )  # fmt: skip


def same_columns(one: Trace, other: Trace, columns=("op", "id", "size", "stream", "t_us")) -> bool:
    return all(np.array_equal(getattr(one, column), getattr(other, column)) for column in columns)


def stacks(trace: Trace) -> list[str]:
    if trace.site is None:
        return [""] * len(trace)
    return [trace.sites[number] if number >= 0 else "" for number in trace.site]
