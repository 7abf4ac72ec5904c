"""Buffers of a GPU in two processes."""

from __future__ import annotations

import gc

import pytest
from sharing_contract import SharingContract

import smartpool
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverNotInstalledError

try:
    KEEPER = open_driver("cuda:0")
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

MiB = 1 << 20
SPIN = r"""
extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n); }
"""


class TestCuda(SharingContract):
    @pytest.fixture
    def device(self):
        return "cuda:0"


@pytest.fixture
def pool():
    with smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(shareable=True)) as pool:
        yield pool
        gc.collect()
        pool.trim()
        pool.check()


def test_kernels_and_frameworks_see_an_opened_buffer(pool):
    cupy = pytest.importorskip("cupy")
    buffer = pool.empty((1000, 1000), "float32")
    array = cupy.from_dlpack(buffer)
    array[:] = 3
    opened = pool.export(buffer).open()
    seen = cupy.from_dlpack(opened)
    assert seen.data.ptr != array.data.ptr
    assert float(seen.sum()) == 3e6
    seen += 1
    cupy.cuda.runtime.deviceSynchronize()
    assert float(array.sum()) == 4e6
    del seen, opened
    gc.collect()
    assert float(array.sum()) == 4e6


def test_an_export_waits_for_what_was_queued(pool):
    cupy = pytest.importorskip("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    buffer = pool.allocate(64 * MiB, stream.ptr)
    spin = cupy.RawKernel(SPIN, "spin")
    with stream:
        spin((1,), (1,), (cupy.int64(300_000_000),))
    pool.managers[0].driver.fill(buffer.pointer, 5, 64 * MiB, stream.ptr)
    shared = pool.export(buffer)
    opened = shared.open()
    assert opened._pool().driver.read(opened.pointer + 64 * MiB - 1, 1) == b"\x05"


def test_memory_that_is_exported_is_counted_once(pool):
    before = KEEPER.memory_info().free
    buffer = pool.allocate(512 * MiB)
    took = before - KEEPER.memory_info().free
    opened = pool.export(buffer).open()
    assert before - KEEPER.memory_info().free - took < 64 * MiB
    opened.free()


def test_chunks_made_without_the_flag_are_refused_by_the_driver():
    driver = open_driver("cuda:0")
    chunk = driver.create_chunk(driver.granularity)
    with pytest.raises(smartpool.DriverError, match="export_chunk"):
        driver.export_chunk(chunk)
    driver.release_chunk(chunk)
    driver.close()
