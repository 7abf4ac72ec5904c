"""Whole programs as values: drawn at once, kept, looked at, and run where one likes.

The machines draw one step after another and see what happened between. A program is drawn without knowing
what the allocator will do, so it can be stored, compared, and run on two allocators side by side. Steps that
make no sense by then (a free of a block that was refused) are left out when it is run.
"""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from smartpool.testing.contract import Contract
from smartpool.testing.program import Free, Malloc, Step
from smartpool.testing.strategies import sizes
from smartpool.testing.stream_session import Busy, GoOn, Use, Wait

__all__ = ["programs", "stream_programs"]

_DEPTH: Final = 12  # how far back a step reaches for its block


@st.composite
def programs(draw: Any, limits: Contract | int = 1 << 20, *, max_steps: int = 40) -> tuple[Step, ...]:
    """Return programs of requests and frees, for `run_program`.

    Parameters
    ----------
    limits
        A contract, or the largest size.
    max_steps
        The longest program.

    Examples
    --------
    >>> from hypothesis import find
    >>> steps = find(programs(4096), lambda steps: len(steps) == 2)
    >>> [type(step).__name__ for step in steps]
    ['Malloc', 'Free']
    """
    nbytes = sizes(limits)
    steps: list[Step] = []
    held: list[Malloc] = []
    count = 0
    for frees in draw(st.lists(st.sampled_from((True, False)), max_size=max_steps)):
        if frees and held:
            block = held.pop(-1 - draw(st.integers(0, _DEPTH)) % len(held))
            steps.append(Free(name=block.name, nbytes=block.nbytes))
        else:
            count += 1
            held.append(Malloc(name=f"block{count}", number=count, nbytes=draw(nbytes)))
            steps.append(held[-1])
    return tuple(steps)


@st.composite
def stream_programs(
    draw: Any, limits: Contract | int = 1 << 20, *, streams: int = 3, max_steps: int = 40
) -> tuple[Step, ...]:
    """Return programs of requests, work and frees on streams that are busy at times, for `run_program`.

    Parameters
    ----------
    limits, max_steps
        As for `programs`.
    streams
        How many streams, the default one included.

    Examples
    --------
    >>> from hypothesis import find
    >>> steps = find(stream_programs(4096), lambda steps: any(isinstance(step, Use) for step in steps))
    >>> [type(step).__name__ for step in steps]
    ['Malloc', 'Use']
    """
    nbytes, number = sizes(limits), st.integers(0, streams - 1)
    steps: list[Step] = []
    held: list[Malloc] = []
    count = 0
    kinds = ("malloc", "use", "free", "busy", "go on", "wait")
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=max_steps)):
        stream = draw(number)
        if kind in ("use", "free") and held:
            at = -1 - draw(st.integers(0, _DEPTH)) % len(held)
            if kind == "use":
                steps.append(Use(name=held[at].name, nbytes=held[at].nbytes, stream=stream, value=1))
                continue
            block = held.pop(at)
            on = stream if draw(st.booleans()) else None
            steps.append(Free(name=block.name, nbytes=block.nbytes, stream=on))
        elif kind in _SIGNALS:
            steps.append(_SIGNALS[kind](stream))
        else:
            count += 1
            held.append(Malloc(name=f"block{count}", number=count, nbytes=draw(nbytes), stream=stream))
            steps.append(held[-1])
    return tuple(steps)


_SIGNALS: Final[dict[str, Any]] = {"busy": Busy, "go on": GoOn, "wait": Wait}
