"""compute-sanitizer's memcheck over a stress run that remaps under load.

    python bench/gpu/sanitize.py [--seconds 20] [--out FOLDER]

Runs `bench/gpu/threads.py` under ``compute-sanitizer --tool memcheck`` with a pool so small that it shows
chunks at new addresses and takes mappings back all the while, and first, to see that the tool sees such
memory at all, a kernel that writes behind the end of a mapping, which must be reported. Writes
`bench/results/sanitizer.json` with both outcomes; where the tool refuses the device (it needs the
hardware's debugger, which some virtual machines do not pass on) it says so and ends with 3.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

PLANTED = """
import sys; sys.path.insert(0, sys.argv[1])
import cupy, smartpool
pool = smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(max_bytes="64MiB", policy="tight"))
heap = pool.managers[0]._heap
pointer = pool.malloc(2 << 20)
put = cupy.RawKernel('extern "C" __global__ void put(unsigned *p) { *p = 1; }', "put")
put((1,), (1,), (pointer,))
cupy.cuda.runtime.deviceSynchronize()
last = max(item.address + item.size for item in heap.mapped(pointer, 2 << 20))
put((1,), (1,), (last + (1 << 30),))
try:
    cupy.cuda.runtime.deviceSynchronize()
except Exception as error:
    print("the device says:", error)
"""


def sanitize(command: list[str], timeout: float) -> tuple[int | None, str]:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    try:
        done = subprocess.run(
            [tool, "--tool", "memcheck", "--launch-timeout", "60", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return None, "compute-sanitizer is not installed"
    except subprocess.TimeoutExpired as error:
        return None, f"timed out after {timeout} s\n{(error.stdout or b'').decode(errors='replace')[-3000:]}"
    return done.returncode, done.stdout


def errors_in(output: str) -> int | None:
    found = re.search(r"ERROR SUMMARY: (\d+) error", output)
    return int(found[1]) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"))
    arguments = parser.parse_args()
    _, planted = sanitize([sys.executable, "-c", PLANTED, str(ROOT)], 120)
    stress = [
        sys.executable, str(Path(__file__).with_name("threads.py")), "--seconds", str(arguments.seconds),
        "--threads", str(arguments.threads), "--max-bytes", "256MiB", "--policy", "tight", "--no-results",
    ]  # fmt: skip
    code, output = sanitize(stress, 60 + 8 * arguments.seconds)
    refused = "Device not supported" in planted + output or errors_in(output) is None
    results = {
        "planted_errors": errors_in(planted),
        "stress_errors": errors_in(output),
        "stress_returned": code,
        "stress_output": [line for line in output.splitlines() if line.startswith("{")],
        "refused": refused,
        "command": "compute-sanitizer --tool memcheck python "
        + " ".join(stress[1:]).replace(str(ROOT) + "/", ""),
        "tail": output[-1500:] if refused else "",
        "planted_tail": planted[-1500:] if not errors_in(planted) else "",
    }
    from common import write_results

    path = write_results("sanitizer", results)
    if arguments.out:
        shutil.copy(path, arguments.out)
    print(results)
    if refused:
        sys.exit(3)
    if results["stress_errors"] or code or not results["planted_errors"]:
        sys.exit("memcheck found errors, the stress run failed, or the planted error was not seen")


if __name__ == "__main__":
    main()
