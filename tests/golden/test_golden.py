"""What the pool reserves and asks of the driver, to the byte and the call, on short traces and few passes.

`python bench/golden.py --check` does the same with all traces, policies and passes.
"""

from __future__ import annotations

import pytest
from golden import POLICY_NAMES, TRACES, differences, measured, stored

SHORT = ("dataframe-mix", "multistream-mix", "multistream-mix on its streams")
LONGER = ("gpt2-train", "llama-train", "unet-multires")
CASES = [
    *((name, policy, 20) for name in SHORT for policy in POLICY_NAMES),
    *((name, policy, 5) for name in LONGER for policy in ("balanced", "fast")),
    *((name, "tight", 1) for name in LONGER),
    *((name, "balanced", 1) for name in ("mixtral-varlen", "resnet50-multires")),
]


@pytest.mark.parametrize(("name", "policy", "passes"), CASES)
def test_a_replay_gives_the_stored_figures_and_its_blocks_lie_right(name, policy, passes):
    found = differences(name, policy, measured(name, policy, passes))
    assert found == [], "where this is meant: python bench/golden.py --write"


def test_the_same_program_does_the_same_wherever_its_memory_lies():
    """Each device has addresses of its own, by which sets of integers and objects are ordered."""
    runs = [measured("multistream-mix", "balanced", 20) for _ in range(4)]
    assert all(run == runs[0] for run in runs)


def test_every_trace_policy_and_number_of_passes_is_stored():
    assert list(stored()) == list(TRACES)
    for policies in stored().values():
        assert list(policies) == list(POLICY_NAMES)
        assert all(list(rows) == ["1", "5", "20"] for rows in policies.values())
