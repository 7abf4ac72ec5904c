"""What a report is made of: a trace, and what each allocator did with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from smartpool.config import Policy, SmartPoolConfig
from smartpool.trace.baselines import PEERS
from smartpool.trace.layouts import RECORDED, Layout, layout_of_plan, recorded_layout, watched_replay
from smartpool.trace.optimum import OPTIMUM
from smartpool.trace.replay import Progress, Run
from smartpool.trace.targets import SMARTPOOL, open_target
from smartpool.trace.trace import Trace

__all__ = ["Analysis", "BeginReplay", "analysis", "title_of"]

_TITLES: Final = {
    SMARTPOOL: "SmartPool",
    "pytorch": "PyTorch",
    "pytorch-expandable": "PyTorch, expandable",
    "pytorch-max-split-128": "PyTorch, max split 128 MiB",
    "pytorch-roundup-8": "PyTorch, roundup 8",
    "cupy": "CuPy",
    "rmm": "RMM",
    "driver-pool": "driver's pool",
    OPTIMUM: "plan of the whole trace",
    RECORDED: "as recorded",
}

BeginReplay = Callable[[str, str], Progress | None]
"""Called with the names of trace and allocator before each replay; returns that replay's progress."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Analysis:
    """A trace with runs and layouts.

    Parameters
    ----------
    trace
        The trace.
    device
        Where it was replayed.
    runs
        What the allocators did, SmartPool first.
    layouts
        Where they put the blocks, in the same order; then that of the plan, and that of the recording
        where its addresses are known.
    """

    trace: Trace
    device: str
    runs: tuple[Run, ...]
    layouts: tuple[Layout, ...]


def analysis(
    trace: Trace,
    *,
    against: Sequence[str] = PEERS,
    device: str = "model:141GiB",
    capacity_bytes: int | None = None,
    policy: Policy | float | None = None,
    plan_seconds: float | None = None,
    begin: BeginReplay | None = None,
) -> Analysis:
    """Replay a trace on SmartPool and its peers, and plan it as a whole. O(events log events) each.

    Parameters
    ----------
    trace
        The trace.
    against
        The peers, by the names of `smartpool.trace.baselines.BASELINES`.
    device, capacity_bytes, policy
        As for `smartpool.trace.targets.open_target`; None for SmartPool's usual policy.
    plan_seconds
        Limit for the planner; None for its own choice.
    begin
        Told before each replay.

    Examples
    --------
    >>> from smartpool.trace import bundled
    >>> found = analysis(Trace.load(bundled("multistream-mix")), against=["cupy"])
    >>> [layout.allocator for layout in found.layouts]
    ['smartpool', 'cupy', 'optimum']
    """
    tell = begin or (lambda *_: None)
    chosen = SmartPoolConfig().policy if policy is None else policy
    runs, layouts = [], []
    for name in (SMARTPOOL, *against):
        with open_target(name, device, capacity_bytes=capacity_bytes, policy=chosen) as target:
            run, layout = watched_replay(trace, target, progress=tell(trace.name, target.name))
        runs.append(run)
        layouts.append(layout)
    tell(trace.name, OPTIMUM)
    layouts.append(layout_of_plan(trace, time_limit=plan_seconds))
    recorded = recorded_layout(trace)
    if recorded is not None:
        layouts.append(recorded)
    return Analysis(trace=trace, device=device, runs=tuple(runs), layouts=tuple(layouts))


def title_of(layout: Layout) -> str:
    """Return the name of a layout for a reader."""
    return _TITLES.get(layout.allocator, layout.allocator)
