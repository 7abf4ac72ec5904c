"""Streams that are destroyed, and others that take over their handles."""

from __future__ import annotations

import pytest

from smartpool import SmartPool
from smartpool.driver import open_driver
from smartpool.errors import SmartPoolError

try:
    open_driver("cuda:0").close()
except SmartPoolError as error:
    pytest.skip(str(error), allow_module_level=True)

SPIN = r"""
extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n); }
"""


class Foreign:
    """Somebody's stream, by its handle."""

    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


def test_a_stream_that_takes_over_a_handle_is_another_stream():
    """The driver gives the handle of a destroyed stream again while that one's work is pending."""
    cupy = pytest.importorskip("cupy")
    spin = cupy.RawKernel(SPIN, "spin")
    spin((1,), (1,), (cupy.int64(1000),))
    reused = 0
    with SmartPool("cuda:0") as pool:
        driver = pool.managers[0].driver
        api = driver.context.api
        for _ in range(20):
            old = api.cuStreamCreate(1)[1]
            pointer = pool.malloc(1 << 20, int(old))
            with cupy.cuda.Stream.from_external(Foreign(int(old))):
                spin((1,), (1,), (cupy.int64(20_000_000),))  # 10 ms, and then
            api.cuMemsetD8Async(pointer, 1, 1 << 20, old)
            pool.free(pointer)
            assert api.cuStreamDestroy(old)[0] == 0
            new = api.cuStreamCreate(1)[1]
            reused += int(new) == int(old)
            again = pool.malloc(1 << 20, int(new))
            api.cuMemsetD8Async(again, 2, 1 << 20, new)
            api.cuStreamSynchronize(new)
            assert driver.read(again, 1) == b"\x02"  # waits for the whole device
            pool.free(again)
            assert api.cuStreamDestroy(new)[0] == 0
        pool.check()
    assert reused  # or the test has lost its reason: then handles may be streams again


def test_a_stream_of_a_green_context_is_one_of_the_device():
    with SmartPool("cuda:0") as pool:
        driver = pool.managers[0].driver
        api, device = driver.context.api, driver.context.device
        if not hasattr(api, "cuGreenCtxStreamCreate"):
            pytest.skip("green contexts need CUDA 12.5")
        code, resource = api.cuDeviceGetDevResource(device, api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM)
        assert code == 0
        code, groups, *_ = api.cuDevSmResourceSplitByCount(1, resource, 0, 8)
        assert code == 0
        code, description = api.cuDevResourceGenerateDesc(groups[:1], 1)
        assert code == 0
        flag = api.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        code, green = api.cuGreenCtxCreate(description, device, flag)
        assert code == 0
        code, stream = api.cuGreenCtxStreamCreate(green, api.CUstream_flags.CU_STREAM_NON_BLOCKING, 0)
        assert code == 0
        other = driver.create_stream()
        for value in range(1, 6):
            pointer = pool.malloc(32 << 20, int(stream))
            code, context = api.cuCtxFromGreenCtx(green)
            api.cuCtxPushCurrent(context)
            for _ in range(50):
                assert api.cuMemsetD8Async(pointer, value, 32 << 20, stream)[0] == 0
            api.cuCtxPopCurrent()
            pool.free(pointer, int(stream))
            again = pool.malloc(32 << 20, other)  # behind the work of the green context
            driver.fill(again, 99, 32 << 20, other)
            assert driver.read(again, 1) == driver.read(again + (32 << 20) - 1, 1) == b"\x63"
            pool.free(again, other)
        assert api.cuStreamDestroy(stream)[0] == 0
        pool.trim(wait=True)
        pool.check()
        driver.destroy_stream(other)
        assert api.cuGreenCtxDestroy(green)[0] == 0
