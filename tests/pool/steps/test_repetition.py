"""Recognition of repetition in a sequence: periods, layers within them, noise, and the cut."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.pool.steps.plans import OUTLIVED, Sequence
from smartpool.pool.steps.repetition import EVIDENCE, SHORTEST, agreeing_periods, find_period, repetition_in


def repeated(step: list[tuple[int, int]], times: int) -> Sequence:
    """A sequence of equal steps; a step is (bytes, requests until it is freed, or `OUTLIVED`)."""
    nbytes, freed = [], []
    total = times * len(step)
    for repetition in range(times):
        for index, (size, life) in enumerate(step):
            here = repetition * len(step) + index
            nbytes.append(size)
            gone = here + life <= total if life != OUTLIVED else False
            freed.append(here + life if gone else OUTLIVED)
    return Sequence(tuple(nbytes), tuple(freed))


def enough(period: int) -> int:
    return (EVIDENCE + 2 * period) // period + 1


def steps(min_size: int = SHORTEST, max_size: int = 300) -> st.SearchStrategy[list[tuple[int, int]]]:
    def make(seed_and_count: tuple[int, int]) -> list[tuple[int, int]]:
        seed, count = seed_and_count
        random = Random(seed)
        sizes = [random.randrange(1, 10) * 512 for _ in range(3)] + [
            random.randrange(1, 1 << 24) for _ in range(6)
        ]
        made = [(random.choice(sizes), random.randrange(1, count + 1)) for _ in range(count)]
        made[random.randrange(count)] = (1 << 25, 1)  # occurs once: no shorter period explains the step
        return made

    return st.tuples(st.integers(0, 1 << 20), st.integers(min_size, max_size)).map(make)


@settings(max_examples=40, deadline=None)
@given(step=steps(), offset=st.integers(0, 400))
def test_a_period_is_found_at_any_phase(step, offset):
    whole = repeated(step, enough(len(step)) + 2)
    offset = min(offset, len(step))
    cut = Sequence(
        whole.nbytes[offset:],
        tuple(f - offset if f != OUTLIVED else f for f in whole.freed_before[offset:]),
    )
    assert find_period(cut) == len(step)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 20), count=st.integers(10, 6000))
def test_no_period_is_found_where_there_is_none(seed, count):
    random = Random(seed)
    sizes = [random.randrange(1, 1 << 20) for _ in range(count)]
    assert agreeing_periods(sizes) == []


def test_layers_within_a_step_are_no_period():
    """Forty equal layers forward, whose blocks are freed backward: each layer repeats, and is not closed."""
    layer = [4096, 8192, 1024, 70000, 512, 8192, 333, 2048, 4096, 99, 1 << 20, 8192, 17, 8192, 5120, 12, 7]
    layers = 40
    forward = layer * layers
    backward = [(11, 1)] * len(forward)
    count = len(forward) + len(backward)
    step = [(size, count - 2 * index - 1) for index, size in enumerate(forward)] + backward
    times = enough(count)
    whole = repeated(step, times)
    assert find_period(whole) == count
    in_the_forward_pass = len(whole) - len(backward)
    seen = Sequence(
        whole.nbytes[:in_the_forward_pass],
        tuple(f if f <= in_the_forward_pass else OUTLIVED for f in whole.freed_before[:in_the_forward_pass]),
    )
    assert find_period(seen) in {None, count}
    assert len(layer) not in {find_period(seen), find_period(whole)}


@pytest.mark.parametrize("share", [0.002, 0.05])
def test_a_little_noise_is_no_matter_and_much_is(share):
    random = Random(1)
    step = [(random.randrange(1, 1 << 20), 1) for _ in range(200)]
    whole = repeated(step, enough(200))
    noisy = tuple(random.randrange(1 << 20) if random.random() < share else size for size in whole.nbytes)
    found = find_period(Sequence(noisy, whole.freed_before))
    assert found == (200 if share < 0.01 else None)


@settings(max_examples=40, deadline=None)
@given(step=steps(max_size=120), turn=st.integers(0, 200))
def test_it_is_cut_where_least_is_live(step, turn):
    """The cut is the best of all, by counting; what lives across it is freed in the next repetition."""
    turned = step[turn % len(step) :] + step[: turn % len(step)]
    period = len(turned)
    found = repetition_in(repeated(turned, enough(period)))
    assert sorted(found.nbytes) == sorted(size for size, _ in turned)

    def across(requests: list[tuple[int, int]], cut: int) -> int:
        """Bytes that are live when the request `cut` is made: of this repetition, and of the one before."""
        return sum(
            size
            for index, (size, life) in enumerate(requests)
            if index < cut < index + life or cut < index + life - period
        )

    lives = [freed - index for index, freed in enumerate(found.freed_before)]
    assert all(1 <= life <= period for life in lives)
    assert sorted(zip(found.nbytes, lives, strict=True)) == sorted(turned)
    best = min(across(turned, cut) for cut in range(period))
    assert across(list(zip(found.nbytes, lives, strict=True)), 0) == best
    rotations = {tuple(turned[cut:] + turned[:cut]) for cut in range(period)}
    assert tuple(zip(found.nbytes, lives, strict=True)) in rotations


def test_what_outlives_its_repetition_is_marked():
    step = [(1 << 25, OUTLIVED)] + [(512 * number, 1) for number in range(1, 40)]
    found = repetition_in(repeated(step, enough(40)))
    assert [
        freed for size, freed in zip(found.nbytes, found.freed_before, strict=True) if size == 1 << 25
    ] == [OUTLIVED]
