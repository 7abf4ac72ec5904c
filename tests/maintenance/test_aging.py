"""Age: what is given back was needed by nobody for as long as promised, and a rhythm is learned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smartpool.maintenance.aging import MOST, IdleDecay

STRETCHES = st.lists(
    st.tuples(st.floats(0.001, 100), st.integers(0, 1000)), min_size=1, max_size=60
)  # (seconds, least idle bytes in them)


@given(STRETCHES, st.floats(1, 200), st.sampled_from([1.0, 0.5, 0.01]))
def test_what_aged_was_idle_all_the_time(stretches, seconds, hurry):
    age = IdleDecay(seconds)
    age.observe(0.0, idle_bytes=10**6, reserved_bytes=10**6)  # what was before is not known
    now, history = 0.0, []
    for length, idle in stretches:
        begin, now = now, now + length
        history.append((begin, now, idle))
        aged = age.observe(now, idle_bytes=idle, reserved_bytes=10**6, hurry=hurry)
        since = now - hurry * seconds
        recent = [least for begin, end, least in history if end > since]
        assert aged <= min(recent)
        if since < 0:
            assert not aged


@given(st.integers(1, 1000), st.floats(0.1, 20))
def test_memory_that_idles_on_is_told_at_the_latest_after_its_age_and_a_pass(idle, interval):
    age = IdleDecay(60.0)
    now = 0.0
    while not age.observe(now, idle_bytes=idle, reserved_bytes=1000):
        now += interval
    assert 60.0 <= now <= 60.0 + interval + 3.75  # short stretches are seen together


def test_nothing_is_told_twice():
    age = IdleDecay(10.0)
    age.observe(0.0, idle_bytes=100, reserved_bytes=100)
    assert age.observe(10.0, idle_bytes=100, reserved_bytes=100) == 100
    age.gave_back(10.0, 60, 40)
    assert age.observe(10.1, idle_bytes=40, reserved_bytes=40) == 40


def times_paid(busy, quiet, phases, interval=5.0, seconds=60.0):
    """Return in which phases a program that pauses regularly had to get its memory back."""
    age, now, held, paid = IdleDecay(seconds), 0.0, 1000, []
    for phase in range(phases):
        if held < 1000:
            paid.append(phase)
            held = 1000
        for length, idle in ((busy, 0), (quiet, 900)):
            end = now + length
            while now < end:
                now += interval
                given = age.observe(now, idle_bytes=idle if held == 1000 else 0, reserved_bytes=held)
                if given:
                    held -= given
                    age.gave_back(now, given, held)
    return paid


def test_a_program_that_pauses_shortly_never_pays():
    assert times_paid(busy=30, quiet=50, phases=50) == []


def test_a_program_that_pauses_regularly_pays_a_few_times():
    for quiet in (80, 100, 150):
        paid = times_paid(busy=30, quiet=quiet, phases=60)
        assert 0 < len(paid) <= 4, (quiet, paid)
        assert max(paid) < 30


def test_a_program_that_pauses_for_long_pays_each_time_and_its_memory_is_free_meanwhile():
    assert len(times_paid(busy=30, quiet=600, phases=10)) == 9


def test_the_age_has_an_end_and_comes_back():
    age = IdleDecay(10.0)
    now = 0.0
    for _ in range(20):
        age.gave_back(now, 100, 0)
        now += 1
        age.observe(now, idle_bytes=0, reserved_bytes=100)
    assert age.seconds == MOST * 10.0
    for _ in range(20):
        age.gave_back(now, 100, 0)
        now += 3 * age.seconds
        age.observe(now, idle_bytes=0, reserved_bytes=0)
    assert age.seconds == 10.0
