"""Leave one out: do the numbers of the policy hold on a trace that they were not chosen on?

For each of the nine traces, the best of 24 settings is chosen on the other eight (the least mean
fragmentation among those that take no more driver time than `balanced` does there, as a geometric mean),
and applied to it. If the numbers of `balanced` were fitted to these traces, what is chosen without a trace
would do worse on it than `balanced` does.

Nine traces say little about rare events, so `balanced` also plays variants of them that nobody recorded:
sizes scaled by 0.31 and 2.7, sizes jittered by up to a quarter, the middle third alone, and each two
neighbors interleaved; with several prices of a MiB, which is the number that they decide.

Prints tables, writes `bench/results/leave_one_out.json`.

Run: python bench/leave_one_out.py
"""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from common import write_results
from elastic import events

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.heap.policy import POLICY_OF_NAME, Policy
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.pool import books
from smartpool.trace import Trace
from smartpool.units import GiB, MiB

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
SHARES = (1 / 192, 1 / 96, 1 / 48)
SMALLEST = (2 * MiB, 4 * MiB)
SLACKS = (0.004, 0.01)
MIB_PRICES = (1e4, 20.0)
BALANCED = POLICY_OF_NAME["balanced"]


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy did with a trace."""

    fragmentation: float
    driver_ms: float


def grid() -> dict[str, Policy]:
    """Return the settings to choose from, `balanced` among them, by a name."""
    settings = {}
    for share, smallest, slack, price in itertools.product(SHARES, SMALLEST, SLACKS, MIB_PRICES):
        name = f"share 1/{1 / share:g}, smallest {smallest // MiB} MiB, slack {slack:g}, {price:g} us/MiB"
        settings[name] = replace(
            BALANCED,
            chunk_share=share,
            smallest_chunk=smallest,
            slack=slack,
            ahead=min(slack, BALANCED.ahead),
            mib_price=price,
        )
    if BALANCED not in settings.values():
        raise SystemExit("balanced is not on the grid: change one of them")
    return settings


def variants(programs: dict[str, tuple[Trace, list]]) -> dict[str, list]:
    """Return programs made from the recorded ones, by name. Frees of what is not there are left out."""
    made: dict[str, list] = {}
    chance = random.Random(7)
    for name, (_, program) in programs.items():
        for factor in (0.31, 2.7):
            made[f"{name} x {factor}"] = [(o, i, max(1, int(n * factor))) for o, i, n, _ in program]
        by_block: dict[int, float] = {}
        made[f"{name} jittered"] = [
            (o, i, max(1, int(n * by_block.setdefault(i, chance.uniform(0.8, 1.25)))))
            for o, i, n, _ in program
        ]
        third = len(program) // 3
        made[f"{name} cut"] = [event[:3] for event in program[third : 2 * third]]
    small = [item for item in programs.items() if len(item[1][1]) < 150_000]
    for (name, (trace, first)), (other, (_, second)) in itertools.pairwise(small):
        shifted = [(o, i + trace.allocations, n) for o, i, n, _ in second]
        places = [(index / len(first), event[:3]) for index, event in enumerate(first)]
        places += [(index / len(second), event) for index, event in enumerate(shifted)]
        made[f"{name} + {other}"] = [event for _, event in sorted(places, key=lambda place: place[0])]
    return {name: _sound(program) for name, program in made.items()}


def _sound(program: list) -> list:
    live: set[int] = set()
    sound = []
    for operation, number, nbytes in program:
        if operation and number not in live:
            continue
        (live.remove if operation else live.add)(number)
        sound.append((operation, number, nbytes))
    return sound


def play_variant(program: list, policy: Policy) -> Score:
    """Return what `policy` does with a variant."""
    books.policy_of = lambda _: policy
    pool = AdvancedMemoryPoolManager(
        ModelDriver(400 * GiB), SmartPoolConfig(enable_predictive_allocation=False)
    )
    pointers: dict[int, tuple[int, int]] = {}
    live = peak = 0
    for operation, number, nbytes in program:
        if operation:
            pointer, size = pointers.pop(number)
            pool.free(pointer)
            live -= size
        else:
            pointers[number] = (pool.malloc(nbytes), nbytes)
            live += nbytes
            peak = max(peak, live)
    return Score(1 - peak / pool.peak_reserved_bytes, pool.driver.seconds * 1e3)


def prices_on_variants(programs: dict[str, tuple[Trace, list]]) -> dict[str, dict[str, object]]:
    """Return, for each price of a MiB, what `balanced` does with the variants."""
    made = variants(programs)
    rows: dict[str, dict[str, object]] = {}
    for price in (1e4, 100.0, 20.0, 10.0):
        policy = replace(BALANCED, mib_price=price)
        scores = {name: play_variant(program, policy) for name, program in made.items()}
        worst = max(scores, key=lambda name: scores[name].fragmentation)
        wastes = [score.fragmentation for score in scores.values()]
        rows[f"{price:g} us/MiB"] = {
            "variants": len(made),
            "mean": round(statistics.mean(wastes), 5),
            "median": round(statistics.median(wastes), 5),
            "worst": round(max(wastes), 5),
            "worst_is": worst,
            "driver_ms": round(statistics.geometric_mean([s.driver_ms for s in scores.values()]), 2),
        }
        print(f"{price:g} us/MiB", rows[f"{price:g} us/MiB"])
    return rows


def play(trace: Trace, program: list, policy: Policy) -> Score:
    """Return what `policy` does with a trace."""
    books.policy_of = lambda _: policy  # a configuration knows named policies and the axis only
    config = SmartPoolConfig(enable_predictive_allocation=False)
    pool = AdvancedMemoryPoolManager(ModelDriver(141 * GiB), config)
    pointers = [0] * trace.allocations
    malloc, free = pool.malloc, pool.free
    for operation, number, nbytes, _ in program:
        if operation:
            free(pointers[number])
        else:
            pointers[number] = malloc(nbytes)
    return Score(1 - trace.peak_live_bytes / pool.peak_reserved_bytes, pool.driver.seconds * 1e3)


def mean_waste(scores: dict[str, Score], names: list[str]) -> float:
    return statistics.mean(scores[name].fragmentation for name in names)


def mean_time(scores: dict[str, Score], names: list[str]) -> float:
    return statistics.geometric_mean([scores[name].driver_ms for name in names])


def main() -> None:
    traces = [Trace.load(path) for path in sorted(TRACES.glob("*.npz"))]
    programs = {trace.name: events(trace) for trace in traces}
    settings = grid()
    scores = {
        name: {trace.name: play(trace, programs[trace.name], policy) for trace in traces}
        for name, policy in settings.items()
    }
    balanced = scores[next(name for name, policy in settings.items() if policy == BALANCED)]
    rows: dict[str, dict[str, object]] = {}
    for trace in traces:
        others = [other.name for other in traces if other is not trace]
        limit = mean_time(balanced, others)
        fast_enough = [name for name in scores if mean_time(scores[name], others) <= limit * 1.000001]
        chosen = min(fast_enough, key=lambda name: mean_waste(scores[name], others))
        there, ours = scores[chosen][trace.name], balanced[trace.name]
        rows[trace.name] = {
            "chosen": chosen,
            "fragmentation": round(there.fragmentation, 5),
            "driver_ms": round(there.driver_ms, 2),
            "balanced_fragmentation": round(ours.fragmentation, 5),
            "balanced_driver_ms": round(ours.driver_ms, 2),
        }
        print(
            f"{trace.name:18} {there.fragmentation:6.2%} ({ours.fragmentation:6.2%})"
            f" {there.driver_ms:6.1f} ms ({ours.driver_ms:.1f})  {chosen}"
        )
    names = [trace.name for trace in traces]
    wastes = [float(str(row["fragmentation"])) for row in rows.values()]
    near = [
        mean_waste(score, names)
        for score in scores.values()
        if mean_time(score, names) <= mean_time(balanced, names) * 1.25
    ]
    summary = {
        "mean": round(statistics.mean(wastes), 5),
        "worst": max(wastes),
        "balanced_mean": round(mean_waste(balanced, names), 5),
        "settings": len(settings),
        "settings_within_a_quarter_of_the_time": len(near),
        "their_means": [round(min(near), 5), round(statistics.median(near), 5), round(max(near), 5)],
    }
    print(summary)
    on_variants = prices_on_variants({trace.name: (trace, programs[trace.name]) for trace in traces})
    print(write_results("leave_one_out", {"traces": rows, "summary": summary, "variants": on_variants}))


if __name__ == "__main__":
    main()
