"""A loop whose repetitions are equal: recorded once, planned, and served by index from then on.

Prints::

    recorded 1, planned 4, hits 80, misses 0
"""

import smartpool

with smartpool.SmartPool("model:8GiB") as pool:
    for _ in range(5):
        with pool.step(wait_for_plan=True):
            layers = [pool.malloc((5 + layer) << 20) for layer in range(20)]
            for pointer in reversed(layers):
                pool.free(pointer)
    steps = pool.statistics.devices[0].steps
    print(f"recorded {steps.recorded}, planned {steps.planned}, hits {steps.hits}, misses {steps.misses}")
