"""Sleep and wake on the device: 24 GiB dropped; 8 GiB to the host, first and later; 4 GiB to disk.

Run: python bench/gpu/sleeping.py [--directory FOLDER]. Writes `bench/results/sleeping.json`, and a copy under
$OUT where that is set.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

MiB, GiB = 1 << 20, 1 << 30
BLOCK = 256 * MiB


def rounds(total, keep, count, directory=None):
    """Return seconds of each sleep and wake of `total` bytes."""
    import smartpool

    rows = []
    with smartpool.SmartPool("cuda:0", sleep_tags=["weights"], enable_auto_defragmentation=False) as pool:
        driver = pool.managers[0].driver
        with pool.tag("weights"):
            blocks = [pool.malloc(BLOCK) for _ in range(total // BLOCK)]
        for block in blocks:
            driver.fill(block, 7, BLOCK, 0)
        for _ in range(count):
            (slept,) = pool.sleep("weights", keep=keep, directory=directory)
            (woken,) = pool.wake("weights")
            assert keep == "nothing" or driver.read(blocks[-1], MiB) == b"\7" * MiB
            rows.append({"sleep_s": slept.seconds, "wake_s": woken.seconds, "bytes": slept.bytes})
        for block in blocks:
            pool.free(block)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default=".")
    options = parser.parse_args()
    result = {
        "dropped_24GiB": rounds(24 * GiB, "nothing", 5),
        "host_8GiB": rounds(8 * GiB, "host", 4),
        "disk_4GiB": rounds(4 * GiB, "disk", 2, options.directory),
    }
    print(json.dumps(result, indent=1))
    from common import write_results

    path = write_results("sleeping", result)
    if os.environ.get("OUT"):
        shutil.copy(path, os.environ["OUT"])


if __name__ == "__main__":
    main()
