"""Bare addresses on two streams: one waits for the other on the device, where it has to, and the host never.

Prints::

    the same memory: True
    waits between streams: 1
    the copy came last: True
"""

import smartpool

SIZE = 32 << 20
with smartpool.SmartPool("cpu", max_bytes=SIZE) as pool:
    driver = pool.managers[0].driver
    compute, copy = driver.create_stream(), driver.create_stream()
    driver.pause(compute)  # as under a kernel that takes long
    first = pool.malloc(SIZE, stream=compute)
    driver.fill(first, 1, SIZE, compute)
    pool.free(first)  # at once: no need to wait for the kernel
    second = pool.malloc(SIZE, stream=copy)
    driver.fill(second, 2, SIZE, copy)
    print("the same memory:", first == second)
    print("waits between streams:", pool.statistics.devices[0].waits)
    driver.resume(compute)
    driver.synchronize()
    print("the copy came last:", driver.read(second, SIZE) == bytes([2]) * SIZE)
    pool.free(second)
    for stream in (compute, copy):
        driver.destroy_stream(stream)
