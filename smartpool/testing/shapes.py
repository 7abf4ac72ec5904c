"""Traces of several shapes: how real programs, and malicious ones, ask and free.

Problem: requests drawn one by one look like no program, and reach few of the states that programs reach.
Method: draw the few numbers that make a shape, and unfold them. Shapes: `stack` (last in, first out:
recursion, activations of a forward pass and their gradients), `queue` (first in, first out: pipelines),
`steps` (one program repeated, with a surprise now and then: training), `serving` (sequences that grow by
doubling and end in any order: key-value caches), `random`, and `adversarial`: what is known to be worst for
best fit, where sizes creep up so that the next request fits no gap that was left, and Robson's doubling,
which frees every second block and asks for twice the size (J. M. Robson, "Worst case fragmentation of first
fit and best fit storage allocation strategies", The Computer Journal 20, 1977).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from hypothesis import strategies as st

from smartpool.testing.contract import Contract
from smartpool.testing.session import Session
from smartpool.testing.steps import Block
from smartpool.testing.strategies import sizes
from smartpool.trace.trace import ALLOCATE, FREE, Trace

__all__ = ["Shape", "play", "traces"]


class Shape(StrEnum):
    """How a trace asks and frees."""

    STACK = "stack"
    QUEUE = "queue"
    STEPS = "steps"
    SERVING = "serving"
    RANDOM = "random"
    ADVERSARIAL = "adversarial"


class _Tape:
    """Collects the events of a trace, and frees what would not fit."""

    def __init__(self, streams: int, capacity: int | None) -> None:
        self.rows: list[tuple[int, int, int, int]] = []
        self.live: dict[int, tuple[int, int]] = {}  # in order of age: id -> size, stream
        self._streams, self._capacity, self._next, self._held = streams, capacity, 0, 0

    def take(self, nbytes: int, stream: int = 0) -> int:
        """Request; the oldest blocks go first where there is no room."""
        nbytes = max(1, nbytes)
        while self._capacity is not None and self.live and self._held + nbytes > self._capacity:
            self.give(next(iter(self.live)))
        number, self._next = self._next, self._next + 1
        stream %= self._streams
        self.live[number] = nbytes, stream
        self._held += nbytes
        self.rows.append((ALLOCATE, number, nbytes, stream))
        return number

    def give(self, number: int) -> None:
        """Free, unless room was made of it before."""
        if number in self.live:
            nbytes, stream = self.live.pop(number)
            self._held -= nbytes
            self.rows.append((FREE, number, nbytes, stream))

    def trace(self, name: str) -> Trace:
        """Return all of it."""
        op, number, size, stream = zip(*self.rows, strict=True) if self.rows else ((), (), (), ())
        return Trace.from_columns(name, op=op, id=number, size=size, stream=stream)


def _stack(draw: Any, tape: _Tape, nbytes: st.SearchStrategy[int], count: int) -> None:
    held: list[int] = []
    for pushes, pops in draw(
        st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=count // 4)
    ):
        held += [tape.take(draw(nbytes)) for _ in range(pushes)]
        for _ in range(min(pops, len(held))):
            tape.give(held.pop())
    while held:
        tape.give(held.pop())


def _queue(draw: Any, tape: _Tape, nbytes: st.SearchStrategy[int], count: int) -> None:
    depth, held = draw(st.integers(1, 8)), []
    for size in draw(st.lists(nbytes, min_size=1, max_size=count)):
        held.append(tape.take(size))
        if len(held) > depth:
            tape.give(held.pop(0))


def _steps(draw: Any, tape: _Tape, nbytes: st.SearchStrategy[int], count: int) -> None:
    # Each request of the step, and after how many further requests it is freed (none: it outlives the step).
    step = draw(
        st.lists(st.tuples(nbytes, st.none() | st.integers(0, 8)), min_size=1, max_size=max(1, count // 4))
    )
    surprises = draw(st.lists(st.integers(0, len(step) - 1), min_size=1, max_size=4))
    for turn, surprise in enumerate(surprises):
        due: dict[int, list[int]] = {}
        outliving = []
        for index, (size, life) in enumerate(step):
            if not (turn and index == surprise and turn % 2):
                number = tape.take(size)
                due.setdefault(index + life, []).append(number) if life is not None else outliving.append(
                    number
                )
            for number in due.pop(index, ()):
                tape.give(number)
        for number in [*(each for group in due.values() for each in group), *outliving]:
            tape.give(number)


def _serving(draw: Any, tape: _Tape, nbytes: st.SearchStrategy[int], count: int) -> None:
    sequences: list[tuple[int, int]] = []  # block, its bytes
    turns = st.tuples(st.sampled_from(("begin", "grow", "grow", "end")), st.integers(0, 20), nbytes)
    for what, which, size in draw(st.lists(turns, min_size=1, max_size=count)):
        if what == "begin" or not sequences:
            small = max(1, size // 16)
            sequences.append((tape.take(small), small))
            continue
        old, held = sequences.pop(which % len(sequences))
        if what == "grow":
            sequences.append((tape.take(2 * held), 2 * held))  # the new one beside the old one: then a copy
        tape.give(old)


def _random(draw: Any, tape: _Tape, nbytes: st.SearchStrategy[int], count: int) -> None:
    turns = st.tuples(st.booleans(), st.integers(0, 50), nbytes, st.integers(0, 7))
    for frees, which, size, stream in draw(st.lists(turns, min_size=1, max_size=count)):
        if frees and tape.live:
            tape.give(list(tape.live)[-1 - which % len(tape.live)])
        else:
            tape.take(size, stream)


def _adversarial(draw: Any, tape: _Tape, nbytes: st.SearchStrategy[int], count: int) -> None:
    size, step = max(1, draw(nbytes) // 8), draw(st.integers(1, 600))
    rounds = draw(st.integers(1, count // 3))
    if draw(st.booleans()):
        for turn in range(rounds):  # creeping: each gap is a little too small for the next request
            large = tape.take(size + turn * step)
            tape.take(draw(st.just(1) | st.just(step)))
            tape.give(large)
        return
    blocks = [tape.take(size) for _ in range(rounds)]
    while len(blocks) > 1:  # doubling: every second block goes, twice the size comes
        for number in blocks[::2]:
            tape.give(number)
        size *= 2
        blocks = blocks[1::2][: len(blocks) // 4] + [tape.take(size) for _ in range(len(blocks) // 4)]


_SHAPES: Final[dict[Shape, Callable[..., None]]] = {
    Shape.STACK: _stack,
    Shape.QUEUE: _queue,
    Shape.STEPS: _steps,
    Shape.SERVING: _serving,
    Shape.RANDOM: _random,
    Shape.ADVERSARIAL: _adversarial,
}


@st.composite
def traces(
    draw: Any,
    limits: Contract | int = 1 << 20,
    *,
    shape: Shape | str | None = None,
    max_requests: int = 40,
    streams: int | None = 1,
) -> Trace:
    """Return traces of a shape, or of any.

    Parameters
    ----------
    limits
        A contract, whose capacity the live bytes then stay below, or the largest size.
    shape
        One of `Shape`; None for any.
    max_requests
        About how many requests there are at most.
    streams
        How many streams the events of `random` traces are on; None for as many as the contract names.

    Examples
    --------
    >>> from hypothesis import find
    >>> trace = find(traces(shape="queue"), lambda trace: trace.allocations == 3)
    >>> trace.op.tolist(), trace.id.tolist()
    ([0, 0, 1, 0, 1], [0, 1, 0, 2, 1])
    """
    contract = limits if isinstance(limits, Contract) else None
    if contract is not None:
        limits = contract.largest  # all of a trace can be served: refusals are for the machine
    kind = Shape(shape) if shape is not None else draw(st.sampled_from(Shape))
    tape = _Tape(streams or 8, contract.capacity if contract else None)
    _SHAPES[kind](draw, tape, sizes(limits, zero=False), max_requests)
    return tape.trace(kind.value)


def play(trace: Trace, session: Session) -> None:
    """Play a trace in a session; requests that are refused, and their frees, are left out.

    Examples
    --------
    >>> trace = Trace.from_columns("two", op=[0, 0, 1], id=[0, 1, 0], size=[10, 20, 10])
    >>> session = Session(Contract(factory=lambda: (bytearray, lambda array: None)))
    >>> play(trace, session)
    >>> [block.nbytes for block in session.live.values()]
    [20]
    """
    held: dict[int, Block] = {}
    streams = len(session.subject.streams)
    columns = (trace.op, trace.id, trace.size, trace.stream)
    for op, number, size, stream in zip(*(column.tolist() for column in columns), strict=True):
        if op == ALLOCATE:
            block = session.malloc(size, stream=stream % streams if streams and stream else None)
            if block is not None:
                held[number] = block
        elif number in held:
            session.free(held.pop(number))
