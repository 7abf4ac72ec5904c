"""Whole programs as values: drawn at once, kept, looked at, and run where one likes.

The machines draw one step after another and see what happened between. A program is drawn without knowing
what the allocator will do, so it can be stored, compared, and run on two allocators side by side. Steps that
make no sense by then (a free of a block that was refused) are left out when it is run.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

from hypothesis import strategies as st

from smartpool.testing.contract import Contract
from smartpool.testing.steps import Free, Malloc, Signal, Step, Use
from smartpool.testing.strategies import sizes

__all__ = ["programs", "stream_programs"]

_DEPTH: Final = 12  # how far back a step reaches for its block


def programs(limits: Contract | int = 1 << 20, *, max_steps: int = 40) -> st.SearchStrategy[tuple[Step, ...]]:
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
    return _programs(sizes(limits), ("free", "malloc"), max_steps, 0)


def stream_programs(
    limits: Contract | int = 1 << 20, *, streams: int = 3, max_steps: int = 40
) -> st.SearchStrategy[tuple[Step, ...]]:
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
    return _programs(sizes(limits), ("malloc", "use", "free", "busy", "go_on", "wait"), max_steps, streams)


@st.composite
def _programs(
    draw: Any, nbytes: st.SearchStrategy[int], kinds: tuple[str, ...], max_steps: int, streams: int
) -> tuple[Step, ...]:
    """Draw steps of these kinds; without streams they name none."""
    steps: list[Step] = []
    held: list[Malloc] = []
    numbers = itertools.count(1)
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=max_steps)):
        stream = draw(st.integers(0, streams - 1)) if streams else None
        if kind in ("use", "free") and held:
            at = -1 - draw(st.integers(0, _DEPTH)) % len(held)
            block = held[at]
            if kind == "use":
                steps.append(Use(name=block.name, nbytes=block.nbytes, stream=stream or 0, value=1))
                continue
            del held[at]
            on = stream if streams and draw(st.booleans()) else None
            steps.append(Free(name=block.name, nbytes=block.nbytes, stream=on))
        elif kind in ("malloc", "use", "free"):
            number = next(numbers)
            held.append(Malloc(name=f"block{number}", number=number, nbytes=draw(nbytes), stream=stream))
            steps.append(held[-1])
        else:
            steps.append(Signal(kind, stream or 0))
    return tuple(steps)
