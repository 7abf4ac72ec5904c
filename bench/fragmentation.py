"""Fragmentation of SmartPool and its peers on every recorded trace: the table of the README.

Run: python bench/fragmentation.py [--readme]
With --readme the table in README.md is replaced by what was measured. The figures are the same on
every machine: the device is a model, and nothing in them is a time.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from common import write_results

from smartpool.cli.replays import DEFAULT_DEVICE, play
from smartpool.report.comparison import FRAGMENTATION, Comparison
from smartpool.trace import read_any
from smartpool.trace.baselines import PEERS
from smartpool.trace.targets import SMARTPOOL

ROOT = Path(__file__).parents[1]
TITLES = {
    "smartpool": "SmartPool",
    "pytorch": "PyTorch",
    "pytorch-expandable": "PyTorch, expandable",
    "cupy": "CuPy",
    "rmm": "RMM",
}
README_TABLE = re.compile(r"^\| trace \| SmartPool \|.*\n(?:\|.*\n)+", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    traces = [read_any(path) for path in sorted((ROOT / "tests" / "data" / "traces").glob("*.npz"))]
    comparison = Comparison(play(traces, [SMARTPOOL, *PEERS], DEFAULT_DEVICE))
    table = markdown(comparison)
    print(table, end="")
    rows = {
        trace: {run.allocator: run.fragmentation for run in comparison.of_trace(trace)}
        for trace in comparison.traces
    }
    means = {name: comparison.mean(name, FRAGMENTATION) for name in comparison.allocators}
    print(write_results("fragmentation", {"device": DEFAULT_DEVICE, "traces": rows, "mean": means}))
    if args.readme:
        path = ROOT / "README.md"
        text, replaced = README_TABLE.subn(table, path.read_text(encoding="utf-8"))
        if replaced != 1:
            raise SystemExit(
                f"expected one table in {path} that begins with '| trace | SmartPool |', got {replaced}"
            )
        path.write_text(text, encoding="utf-8")


def markdown(comparison: Comparison) -> str:
    """Return the table, the least of each row in bold."""
    names = comparison.allocators
    lines = [
        f"| trace | {' | '.join(TITLES[name] for name in names)} |",
        f"|---|{'--:|' * len(names)}",
    ]
    for trace in comparison.traces:
        values = [run.fragmentation for run in comparison.of_trace(trace)]
        lines.append(f"| {trace} | {' | '.join(cells(values))} |")
    means = [comparison.mean(name, FRAGMENTATION) for name in names]
    lines.append(f"| mean | {' | '.join(cells(means))} |")
    return "\n".join(lines) + "\n"


def cells(values: list[float]) -> list[str]:
    texts = [FRAGMENTATION.text(value) for value in values]
    least = FRAGMENTATION.text(min(values))
    return [f"**{text}**" if text == least else text for text in texts]


if __name__ == "__main__":
    main()
