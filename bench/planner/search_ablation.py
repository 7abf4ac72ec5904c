"""What is each part of the exact search worth? Leave one out at a time.

Run with ``python bench/planner/search_ablation.py [--limit SECONDS]``; writes
bench/results/planner_search_ablation.json. A to F with three seeds each, and six instances of each
of some harder families of search_fit.py. Processor time; an instance that was not fitted counts the limit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_results
from search_fit import MIB, families, published, run

from smartpool.planner.search import restarts
from smartpool.planner.search.merging import Merge
from smartpool.planner.search.restarts import COMPLETE, GUESSES, Guess, Priority
from smartpool.planner.search.skyline import Task
from smartpool.planner.search.tree import Tree

HARDER = ("A-F, 40 % cut in time", "A-F, half cut in both, to the byte", "two of A-F on one another")


class Frozen(list[float]):
    """Weights that never change."""

    def __setitem__(self, *_: object) -> None:
        pass


def unweighted(task: Task, weights: list[float], *, lazy: bool) -> Tree:
    return Tree(task, Frozen(weights), lazy=lazy)


def forgetful(task: Task, weights: list[float], *, lazy: bool) -> Tree:
    return Tree(task, [1.0] * len(weights), lazy=lazy)


def only(keep: Callable[[Guess], bool]) -> tuple[list[Guess], ...]:
    return tuple([guess for guess in tier if guess == COMPLETE or keep(guess)] for tier in GUESSES)


def variants() -> Iterator[tuple[str, tuple[list[Guess], ...], Callable[..., Tree]]]:
    """Yield a name, the guesses, and how a tree is made."""
    yield "all of it", GUESSES, Tree
    yield "no chains", only(lambda guess: guess.merge is Merge.STACKS), Tree
    unmerged = [
        Guess(guess.priority, guess.reverse, Merge.NONE, guess.lazy)
        for tier in GUESSES
        for guess in tier
        if guess.merge is Merge.STACKS
    ]
    yield "no merges at all", (unmerged,), Tree
    yield "time never reversed", only(lambda guess: not guess.reverse), Tree
    yield "one priority (width)", only(lambda guess: guess.priority is Priority.WIDTH), Tree
    yield "never lazy", only(lambda guess: not guess.lazy), Tree
    yield "always lazy", only(lambda guess: guess.lazy), Tree
    yield "no weights", GUESSES, unweighted
    yield "weights forgotten at restarts", GUESSES, forgetful


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=float, default=4.0)
    limit = parser.parse_args().limit
    harder = [case for name, cases in families(6) if name in HARDER for case in cases]
    rows = []
    for name, tiers, tree in variants():
        restarts.GUESSES, restarts.Tree = tiers, tree
        own = [run(published(letter), MIB, limit, seed) for letter in "ABCDEF" for seed in range(3)]
        other = [run(columns, capacity, limit, n) for n, (columns, capacity) in enumerate(harder)]
        row = {"variant": name}
        for group, outcomes in (("a_to_f", own), ("harder", other)):
            seconds = [busy if fitted else limit for fitted, _, busy in outcomes]
            row[group] = {
                "fitted": sum(outcome[0] for outcome in outcomes),
                "of": len(outcomes),
                "median_s": round(median(seconds), 4),
                "mean_s": round(sum(seconds) / len(seconds), 3),
            }
        print(row, flush=True)
        rows.append(row)
    write_results("planner_search_ablation", {"limit_s": limit, "rows": rows})


if __name__ == "__main__":
    main()
