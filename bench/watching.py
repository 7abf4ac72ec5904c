"""What it costs to watch a pool: each kind of statistics, by request, by question, and while nobody watches.

Requests are pairs of `malloc` and `free` of a cached size, in rounds that are interleaved; each round
gives a difference to the unwatched pool of the same round, and the median of the differences counts. The
clock is the thread's own, so that others on the machine do not count.

Run: python bench/watching.py [--rounds 100]
"""

from __future__ import annotations

import argparse
import statistics
import time
import timeit
from collections.abc import Callable

from common import write_results

from smartpool import SmartPool, SmartPoolConfig
from smartpool.telemetry.hooks import AllocateEvent

NUMBER = 4096  # a batch of the journal or two
BLOCKS = 100_000


class Silent:
    """An observer that does nothing."""

    def allocated(self, pointer: int, nbytes: int, stream: int) -> None:
        pass

    def freed(self, pointer: int, stream: int) -> None:
        pass


def watched() -> dict[str, SmartPool]:
    """Return pools that are watched in one way each; the first is not."""
    pools = {
        name: SmartPool("model:1GiB", SmartPoolConfig(enable_auto_defragmentation=False, debug=False))
        for name in (
            "nobody watches", "tags are set, nobody tracks", "tracking", "tracking, tagged",
            "tracking, stacks of 8 frames", "recording", "recording and tracking", "a hook on requests",
            "an observer",
        )
    }  # fmt: skip
    for name, pool in pools.items():
        if "tracking" in name:
            pool.start_tracking(stack_depth=8 if "stacks" in name else 0)
        if "recording" in name:
            pool.start_recording()
    pools["a hook on requests"].hooks.on_allocate(nothing)
    pools["an observer"].managers[0].add_observer(Silent())
    return pools


def nothing(event: AllocateEvent) -> None:
    pass


def requests(rounds: int) -> dict[str, dict[str, float]]:
    """Return microseconds by request or free, beyond the pool that nobody watches."""
    pools = watched()
    timers = {}
    for name, pool in pools.items():
        pool.free(pool.malloc(512))
        names = {"malloc": pool.malloc, "free": pool.free}
        timers[name] = timeit.Timer("free(malloc(512))", timer=time.thread_time, globals=names)
    took: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            with pools[name].tag("bench") if "tag" in name else pools[name]._manager.slow_path.section.lock:
                took[name].append(timer.timeit(NUMBER) / NUMBER / 2 * 1e6)
    floor = took["nobody watches"]
    rows = {}
    for name, values in took.items():
        beyond = [value - base for value, base in zip(values, floor, strict=True)]
        rows[name] = {
            "microseconds": round(statistics.median(values), 4),
            "beyond": round(statistics.median(beyond), 4),
            "least_beyond": round(min(values) - min(floor), 4),
            "times": round(statistics.median(v / base for v, base in zip(values, floor, strict=True)), 2),
        }
    for pool in pools.values():
        pool.close()
    return rows


def best_of(function: Callable[[], object], repeat: int = 7, number: int = 1) -> float:
    """Return the seconds of one call: the median over repetitions."""
    return (
        statistics.median(timeit.repeat(function, timer=time.thread_time, repeat=repeat, number=number))
        / number
    )


def scopes() -> dict[str, float]:
    """Return microseconds of entering and leaving a tag and a scope."""
    with SmartPool("model:1GiB") as pool:
        pool.start_tracking()

        def tag() -> None:
            with pool.tag("bench"):
                pass

        def profile() -> None:
            with pool.profile("bench"):
                pass

        return {
            name: round(best_of(one, number=5000) * 1e6, 3)
            for name, one in (("tag", tag), ("profile", profile))
        }


def questions() -> dict[str, float]:
    """Return milliseconds of each question to a pool of `BLOCKS` live blocks."""
    with SmartPool("model:64GiB") as pool:
        pool.start_tracking()
        held = [pool.malloc(512 * (1 + number % 50)) for number in range(BLOCKS)]
        manager = pool.managers[0]
        pool.statistics  # noqa: B018 - what was requested is read

        def locked() -> None:
            with manager.working():
                manager.telemetry._map_maker()

        rows = {
            "statistics": best_of(lambda: pool.statistics),
            "memory_map": best_of(pool.memory_map),
            "memory_map, under the lock": best_of(locked),
            "memory_map().as_dict()": best_of(lambda: pool.memory_map().as_dict()),
        }
        for pointer in held:
            pool.free(pointer)
    return {name: round(seconds * 1e3, 2) for name, seconds in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    rows = requests(arguments.rounds)
    for name, row in rows.items():
        print(f"{name:32} {row['microseconds']:7.3f} us a request or free, {row['beyond']:+.3f}")
    entered = scopes()
    for name, microseconds in entered.items():
        print(f"{'enter and leave a ' + name:32} {microseconds:7.2f} us")
    asked = questions()
    for name, milliseconds in asked.items():
        print(f"{name + f', {BLOCKS} blocks':45} {milliseconds:7.1f} ms")
    payload = {"requests": rows, "scopes_us": entered, "questions_ms": asked, "blocks": BLOCKS}
    print(write_results("watching", payload))


if __name__ == "__main__":
    main()
