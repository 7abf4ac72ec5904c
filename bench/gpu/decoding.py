"""What the host pays for memory under PyTorch: decoding with a growing cache, and bare requests.

    python bench/gpu/decoding.py [--repeat 5] [--tokens 150]

A decoder of 12 layers generates token by token, without graphs or compilation, and its cache grows by
`torch.cat`, so that a token costs some 500 requests and the host is what limits it. Beside it: a request of
PyTorch's allocator and its end (`caching_allocator_alloc`, `caching_allocator_delete`), and `torch.empty` and
its end, of 512 B, 100 kB and 3 MiB. PyTorch's own allocator and SmartPool under `install` take turns, each in
a process of its own. Prints medians and, since the speed of a host may have two levels, best runs; writes
`bench/results/decoding.json`, and a copy under $OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

ALLOCATORS = ("torch", "smartpool")
BATCHES = (1, 8, 32)
SIZES = (512, 100_000, 3 << 20)
LAYERS, WIDTH, HEADS = 12, 512, 8


def decode(torch, batch, tokens):
    """Return milliseconds a token, and bytes reserved over bytes live at the end."""
    functional = torch.nn.functional
    generator = torch.Generator("cuda").manual_seed(1)

    def weight(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.float16, generator=generator) / 50

    layers = [
        (weight(WIDTH, 3 * WIDTH), weight(WIDTH, WIDTH), weight(WIDTH, 4 * WIDTH), weight(4 * WIDTH, WIDTH))
        for _ in range(LAYERS)
    ]
    one = torch.ones(WIDTH, device="cuda", dtype=torch.float16)
    keys, values = [None] * LAYERS, [None] * LAYERS
    state = weight(batch, 1, WIDTH)

    def token(state):
        for index, (mix, out, up, down) in enumerate(layers):
            hidden = functional.layer_norm(state, (WIDTH,), one)
            query, key, value = (
                part.view(batch, 1, HEADS, -1).transpose(1, 2) for part in (hidden @ mix).chunk(3, dim=-1)
            )
            if keys[index] is not None:
                key = torch.cat((keys[index], key), dim=2)
                value = torch.cat((values[index], value), dim=2)
            keys[index], values[index] = key, value
            scores = (query @ key.transpose(2, 3) / 8).softmax(dim=-1)
            mixed = (scores @ value).transpose(1, 2).reshape(batch, 1, WIDTH)
            state = state + mixed @ out
            hidden = functional.layer_norm(state, (WIDTH,), one)
            state = state + functional.gelu(hidden @ up) @ down
        return state / state.norm(dim=-1, keepdim=True)

    with torch.no_grad():
        for _ in range(20):
            state = token(state)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(tokens):
            state = token(state)
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin) / tokens, float(state.float().sum())


def bare(torch, nbytes, times=20_000):
    """Return nanoseconds of a request and its end, of the allocator alone and by `torch.empty`."""
    allocate, delete = torch.cuda.caching_allocator_alloc, torch.cuda.caching_allocator_delete
    for _ in range(100):
        delete(allocate(nbytes))
    begin = time.perf_counter()
    for _ in range(times):
        delete(allocate(nbytes))
    raw = (time.perf_counter() - begin) / times
    for _ in range(100):
        torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    begin = time.perf_counter()
    for _ in range(times):
        torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    return 1e9 * raw, 1e9 * (time.perf_counter() - begin) / times


def worker(allocator, tokens):
    import torch

    installed = 0.0
    if allocator == "smartpool":
        import smartpool
        import smartpool.interop.torch

        begin = time.perf_counter()
        smartpool.interop.torch.install(smartpool.SmartPool("cuda:0"))
        installed = time.perf_counter() - begin
    figures = {"install_s": installed}
    sums = []
    for batch in BATCHES:
        figures[f"decode_{batch}_ms"], total = decode(torch, batch, tokens)
        sums.append(total)
    for nbytes in SIZES:
        figures[f"raw_{nbytes}_ns"], figures[f"empty_{nbytes}_ns"] = bare(torch, nbytes)
    print(json.dumps({"figures": figures, "sums": sums}), flush=True)
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--worker", choices=ALLOCATORS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.tokens)
    runs = {allocator: [] for allocator in ALLOCATORS}
    for _ in range(arguments.repeat):
        for allocator, done in runs.items():
            command = [sys.executable, __file__, "--worker", allocator, "--tokens", str(arguments.tokens)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode:
                sys.exit(f"{allocator} ended with {process.returncode}: {process.stderr[-2000:]}")
            done.append(json.loads(process.stdout.splitlines()[-1]))
    equal = len({str(run["sums"]) for done in runs.values() for run in done}) == 1
    medians = {
        allocator: {name: median(run["figures"][name] for run in done) for name in done[0]["figures"]}
        for allocator, done in runs.items()
    }
    best = {
        allocator: {name: min(run["figures"][name] for run in done) for name in done[0]["figures"]}
        for allocator, done in runs.items()
    }
    over = {
        what: {
            name: value / of["torch"][name] for name, value in of["smartpool"].items() if of["torch"][name]
        }
        for what, of in (("median", medians), ("best", best))
    }
    for name, ratio in over["median"].items():
        ours, theirs = medians["smartpool"][name], medians["torch"][name]
        print(f"{name:18} {theirs:10.3f} {ours:10.3f}  x {ratio:.2f}, best x {over['best'][name]:.2f}")
    print(f"installed in {medians['smartpool']['install_s']:.2f} s; the same results: {equal}")
    from common import write_results

    results = {"medians": medians, "best": best, "ratios": over, "same_results": equal, "runs": runs}
    path = write_results("decoding", results)
    if os.environ.get("OUT"):
        shutil.copy(path, os.environ["OUT"])


if __name__ == "__main__":
    main()
