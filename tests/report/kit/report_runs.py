"""Runs to report on: made by hand, and any that Hypothesis can think of."""

from __future__ import annotations

from hypothesis import strategies as st

from smartpool.trace.replay import Run, TimelinePoint

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!-- ",
    "]]>",
    "&lt;script&gt;",
    "[bold red]markup[/]",
    "[/]",
    "\x1b[2J\x1b[31mred",
    "\u202eright-to-left",
    "lone \ud800 surrogate",
    "",
    "x" * 300,
)

# Not "NaN" as a name: tests look for it as a number that should not be in a page.
names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=()), max_size=20).filter(
        lambda text: "NaN" not in text and "Infinity" not in text
    ),
)


def make_run(
    trace="trace", allocator="smartpool", *, live=3 << 30, reserved=4 << 30, failed=0, **more
) -> Run:
    timeline = (TimelinePoint(4, live // 2, reserved // 2), TimelinePoint(9, live, reserved))
    return Run(
        **{
            "trace": trace,
            "allocator": allocator,
            "device": "model:80GiB",
            "events": 10,
            "streams": 1,
            "peak_live_bytes": live,
            "peak_reserved_bytes": reserved,
            "fragmentation": 1 - live / reserved if reserved else 0.0,
            "seconds": 1e-3,
            "driver_seconds": 2e-3,
            "driver_calls": {"allocate": 1},
            "microseconds_per_operation": 1.5,
            "failed_requests": failed,
            "timeline": timeline,
            **more,
        }
    )


@st.composite
def runs(draw) -> Run:
    events = draw(st.integers(0, 5000))
    ends = draw(st.lists(st.integers(0, max(0, events - 1)), unique=True, max_size=8 if events else 0))
    points = []
    for event in sorted(ends):
        live = draw(st.integers(0, 1 << 50))
        points.append(TimelinePoint(event, live, live + draw(st.integers(0, 1 << 50))))
    live = max((point.live_bytes for point in points), default=0)
    reserved = max((point.reserved_bytes for point in points), default=0)
    return make_run(
        draw(names),
        draw(names),
        live=live,
        reserved=reserved,
        failed=draw(st.integers(0, 3)),
        device=draw(names),
        events=events,
        streams=draw(st.integers(0, 256)),
        driver_seconds=draw(st.floats(0, 1e6)),
        microseconds_per_operation=draw(st.floats(0, 1e9)),
        timeline=tuple(points),
    )
