"""Every baseline against the peak reserved that the real allocator showed on the same trace."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from smartpool.driver import open_driver
from smartpool.trace.baselines import BASELINES, make_baseline
from smartpool.trace.replay import replay
from smartpool.trace.trace import Trace

DATA = Path(__file__).parents[2] / "data"
DEVICE = "model:141GiB"  # as large as the one that the peers were recorded on

PEER_OF = {
    "pytorch": "torch",
    "pytorch-expandable": "torch:expandable_segments:True",
    "pytorch-max-split-128": "torch:max_split_size_mb:128",
    "pytorch-roundup-8": "torch:roundup_power2_divisions:8",
    "cupy": "cupy",
    "rmm": "rmm_pool",
    "driver-pool": "driver_pool",
}

# Where a model does not give the recorded peak to the byte: what it gives in proportion. A change here
# is a change of a model, and of the table in docs/replay.md.
RESIDUE = {("cupy", "unet-multires"): -0.0055}


@functools.cache
def recorded() -> dict[tuple[str, str], dict[str, int]]:
    lines = (DATA / "anchors" / "peers_replay_h200.jsonl").read_text().splitlines()
    return {(row["peer"], row["trace"]): row for row in map(json.loads, lines)}


TRACES = sorted({trace for _, trace in recorded()})


@functools.cache
def load(name: str) -> Trace:
    return Trace.load(DATA / "traces" / f"{name}.npz")


# The two longest traces take three quarters of the time. The variants, which share their code with
# their main peer, play them in bench/replay only.
LONGEST = ("llama-lora-varlen", "llama-serve")
VARIANTS = ("pytorch-max-split-128", "pytorch-roundup-8")
PAIRS = [
    (name, trace) for name in BASELINES for trace in TRACES if not (name in VARIANTS and trace in LONGEST)
]


@pytest.mark.parametrize(("name", "trace"), PAIRS)
def test_baseline_reserves_what_the_peer_did(name, trace):
    baseline = make_baseline(name, open_driver(DEVICE))
    run = replay(load(trace), baseline)
    baseline.check()
    peer = recorded()[PEER_OF[name], trace]
    assert run.failed_requests == 0
    assert run.peak_live_bytes == peer["peak_live"]
    expected = RESIDUE.get((name, trace), 0.0)
    residue = run.peak_reserved_bytes / peer["peak_reserved"] - 1
    assert residue == pytest.approx(expected, abs=5e-5) if expected else residue == 0
    assert abs(residue) < 0.01


def test_bounds_of_the_main_peers():
    exact = [trace for trace in TRACES if ("pytorch", trace) not in RESIDUE]
    assert len(TRACES) == 9
    assert len(exact) >= 8


@pytest.mark.parametrize("trace", TRACES)
def test_garbage_collection_threshold_without_a_memory_fraction_does_nothing(trace):
    # Why there is no baseline of that name: the recorded peaks are those of the defaults.
    collected = recorded()["torch:garbage_collection_threshold:0.6", trace]
    assert collected["peak_reserved"] == recorded()["torch", trace]["peak_reserved"]
