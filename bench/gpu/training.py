"""Training a language model of 200 million parameters with PyTorch: its allocator against SmartPool.

    python bench/gpu/training.py [--parts time,capacity] [--steps 30] [--cap 24GiB]

A transformer of 14 layers, 1024 wide, vocabulary 32,768, in bf16 with AdamW, trained on random tokens with
sequences of one length (1024), of changing lengths (256 to 1024, the same in every process; most are met
once, and PyTorch's own work for a new shape is then most of the step), and of recurring ones (12 lengths,
all met before the clock runs). Each allocator runs in a process of its own: PyTorch's by default and with
expandable segments, and SmartPool by `smartpool.interop.torch.install`. Told are the median time of a
step, the most bytes reserved, and the most bytes that were live (as requested; PyTorch's own count in the
first process, since it depends on the program and not on the allocator). `capacity` finds the largest
batch of which ten steps fit into the cap, by bisection; several processes share the device then, so it
times nothing.

Writes `bench/results/training-time.json` and `training-capacity.json`, and copies under $OUT where that
is set.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

ALLOCATORS = ("pytorch", "pytorch-expandable", "smartpool", "smartpool-fast")
LENGTHS = ("fixed", "changing", "recurring")
LAYERS, WIDTH, HEADS, VOCABULARY, LONGEST = 14, 1024, 16, 32_768, 1024
BATCH = 16
WARM = 5
RECURRING = 12


def build(torch: Any) -> Any:
    """Return the model and its optimizer, on the device."""
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            parts = self.mix(self.first(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
            q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).reshape(batch, length, WIDTH))
            return x + self.down(functional.gelu(self.up(self.second(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return functional.linear(self.norm(x), self.tokens.weight)

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Model().to(torch.bfloat16)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def lengths_of(kind: str, steps: int) -> list[int]:
    if kind == "fixed":
        return [LONGEST] * steps
    dice = random.Random(7)
    if kind == "recurring":
        known = [dice.randint(LONGEST // 4, LONGEST) for _ in range(RECURRING)]
        return [known[step] if step < RECURRING else dice.choice(known) for step in range(steps)]
    return [dice.randint(LONGEST // 4, LONGEST) for _ in range(steps)]


def train(torch: Any, model: Any, optimizer: Any, batch: int, lengths: list[int]) -> list[float]:
    """Return the seconds of each step, device work included."""
    functional, seconds = torch.nn.functional, []
    for length in lengths:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        tokens = torch.randint(VOCABULARY, (batch, length + 1), device="cuda")
        inputs = tokens[:, :-1]
        logits = model(inputs)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del logits, loss, tokens, inputs
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds


class Memory:
    """The allocator of this process."""

    def __init__(self, name: str, cap: int | None) -> None:
        self.ours = name.startswith("smartpool")
        if self.ours:
            import smartpool
            import smartpool.interop.torch as interop

            options: dict[str, Any] = {"policy": name.partition("-")[2] or "balanced", "max_bytes": cap}
            self.pool = smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(**options))
            interop.install(self.pool)
            self.interop = interop
        import torch

        self.torch = torch
        if cap and not self.ours:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(cap / total)

    def peaks(self) -> dict[str, int | None]:
        if self.ours:
            now = self.pool.statistics.devices[0]
            return {"peak_reserved_bytes": now.peak_reserved_bytes, "peak_live_bytes": None}
        stats = self.torch.cuda.memory_stats()
        return {
            "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
            "peak_live_bytes": stats["requested_bytes.all.peak"],
            "peak_allocated_bytes": stats["allocated_bytes.all.peak"],
        }

    def driver_calls(self) -> dict[str, int]:
        return dict(self.pool.managers[0].driver.calls) if self.ours else {}


def time_steps(name: str, kind: str, steps: int) -> dict[str, Any]:
    memory = Memory(name, None)
    model, optimizer = build(memory.torch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    warm = RECURRING if kind == "recurring" else WARM
    train(memory.torch, model, optimizer, BATCH, lengths_of(kind, warm))
    calls = memory.driver_calls()
    seconds = train(memory.torch, model, optimizer, BATCH, lengths_of(kind, steps))
    after = memory.driver_calls()
    return {
        "allocator": name, "lengths": kind, "batch": BATCH, "parameters": parameters, "steps": steps,
        "median_ms": round(statistics.median(seconds) * 1e3, 3),
        "mean_ms": round(statistics.mean(seconds) * 1e3, 3),
        "all_ms": [round(value * 1e3, 2) for value in seconds], **memory.peaks(),
        "driver_calls_while_timed": {key: n - calls.get(key, 0) for key, n in after.items()},
    }  # fmt: skip


def fits(memory: Memory, batch: int, lengths: list[int]) -> bool:
    """Return whether the steps run, from a fresh model, in what the cap allows."""
    torch = memory.torch
    try:
        model, optimizer = build(torch)
        train(torch, model, optimizer, batch, lengths)
    except torch.OutOfMemoryError:
        return False
    else:
        return True
    finally:
        model = optimizer = None
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def largest_batch(name: str, kind: str, cap: int) -> dict[str, Any]:
    memory = Memory(name, cap)
    lengths = lengths_of(kind, 10)
    low, high = 0, 1
    while fits(memory, high, lengths):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(memory, middle, lengths) else (low, middle)
    return {"allocator": name, "lengths": kind, "cap_bytes": cap, "largest_batch": low}


# ------------------------------------------------------------------ processes


def start(part: str, name: str, kind: str, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    environment = dict(os.environ)
    if name == "pytorch-expandable":
        environment["PYTORCH_ALLOC_CONF"] = environment["PYTORCH_CUDA_ALLOC_CONF"] = (
            "expandable_segments:True"
        )
    command = [sys.executable, __file__, "--worker", part, name, kind, "--steps", str(arguments.steps)]
    command += ["--cap", arguments.cap]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def collect(process: subprocess.Popen[str], what: str) -> dict[str, Any] | None:
    output, _ = process.communicate()
    if process.returncode:
        print(f"{what}: left out, it ended with {process.returncode}", file=sys.stderr)
        return None
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(json.dumps({key: value for key, value in row.items() if key != "all_ms"}), flush=True)
    return row


def measure_times(arguments: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for kind in LENGTHS:
        own = [collect(start("time", name, kind, arguments), f"{name}, {kind}") for name in names]
        found = [row for row in own if row is not None]
        live = next((row["peak_live_bytes"] for row in found if row["peak_live_bytes"]), None)
        base = next((row for row in found if row["allocator"] == "pytorch"), None)
        for row in found:
            row["peak_live_bytes"] = live
            row["reserved_over_live"] = round(row["peak_reserved_bytes"] / live, 4) if live else None
            row["time_over_pytorch"] = over(row, base) if base else None
        rows += found
    return rows


def over(row: dict[str, Any], base: dict[str, Any]) -> float:
    """Return the median over the steps of the time of one over that of the other: the same lengths each."""
    ratios = (mine / theirs for mine, theirs in zip(row["all_ms"], base["all_ms"], strict=True))
    return round(statistics.median(ratios), 4)


def measure_capacity(arguments: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for kind in LENGTHS[:2]:
        running = [(name, start("capacity", name, kind, arguments)) for name in names]
        rows += [collect(process, f"{name}, {kind}") for name, process in running]
    return [row for row in rows if row is not None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="time,capacity")
    parser.add_argument("--allocators", default=",".join(ALLOCATORS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cap", default="24GiB")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        from smartpool.units import parse_size

        part, name, kind = arguments.worker
        row = (
            time_steps(name, kind, arguments.steps)
            if part == "time"
            else largest_batch(name, kind, parse_size(arguments.cap))
        )
        print(json.dumps(row))
        return
    names = arguments.allocators.split(",")
    results: dict[str, Any] = {}
    if "time" in arguments.parts:
        results["time"] = measure_times(arguments, names)
    if "capacity" in arguments.parts:
        results["capacity"] = measure_capacity(arguments, names)
    show(results)
    from common import write_results

    for part, rows in results.items():
        path = write_results(f"training-{part}", {"rows": rows, "gpu": gpu()})
        if "OUT" in os.environ:
            shutil.copy(path, os.environ["OUT"])


def show(results: dict[str, Any]) -> None:
    for row in results.get("time", ()):
        reserved = row["peak_reserved_bytes"] / 2**30
        print(
            f"{row['allocator']:20} {row['lengths']:9} {row['median_ms']:9.2f} ms "
            f"({row['time_over_pytorch']})  reserved {reserved:7.3f} GiB, {row['reserved_over_live']} of live"
        )
    for row in results.get("capacity", ()):
        print(f"{row['allocator']:20} {row['lengths']:9} largest batch {row['largest_batch']}")


def gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
