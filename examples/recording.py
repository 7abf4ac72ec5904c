"""What would another allocator have reserved for this program? Recorded here, and replayed on models of two.

Prints::

    smartpool reserves less than pytorch: True
    smartpool reserves less than cupy: True
"""

import smartpool
from smartpool.report.analysis import analysis

with smartpool.SmartPool("model:8GiB", record=True) as pool:
    held = []
    for step in range(60):  # sequences of changing length, as in serving
        held.append(pool.malloc((1 + step * 7 % 13) << 21))
        if len(held) > 6:
            pool.free(held.pop(step % 5))
    for pointer in held:
        pool.free(pointer)
    trace = pool.stop_recording()

ours, *peers = analysis(trace, against=["pytorch", "cupy"]).runs
for run in peers:
    print(
        f"smartpool reserves less than {run.allocator}: {ours.peak_reserved_bytes < run.peak_reserved_bytes}"
    )
