"""Launch shapes, against the rules of a made-up device."""

from __future__ import annotations

import types

import pytest
from fake_cuda import OK, CUresult, FakeCuda
from hypothesis import given
from hypothesis import strategies as st

from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.driver.cuda.occupancy import kernel_handle, launch_shape
from smartpool.errors import DriverError, InvalidRequestError

ATTRIBUTES = {
    "MULTIPROCESSOR_COUNT": 132,
    "MAX_THREADS_PER_MULTIPROCESSOR": 2048,
    "MAX_THREADS_PER_BLOCK": 1024,
}
SHARED = 228 << 10
KERNEL = 0x7000


class Occupied(FakeCuda):
    """A kernel of `registers` a thread on a device of 65536 of them; 2048 threads, 32 blocks resident."""

    registers = 32
    largest = 1024
    CUfunction = FakeCuda.CUstream

    class CUfunction_attribute:  # noqa: N801 - the driver's name
        CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = "largest"

    def cuDeviceGetAttribute(self, attribute, device):
        name = attribute.removeprefix("CU_DEVICE_ATTRIBUTE_")
        return OK, ATTRIBUTES.get(name, 1)

    def resident(self, block, shared):
        by_shared = SHARED // shared if shared else 32
        return min(2048 // block, 65536 // (self.registers * block), by_shared, 32)

    def cuFuncGetAttribute(self, attribute, function):
        return OK, self.largest

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function, block, shared):
        if int(function) != KERNEL:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        return OK, self.resident(block, shared)

    def cuOccupancyMaxPotentialBlockSize(self, function, callback, shared, limit):
        assert callback is None
        if int(function) != KERNEL:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        top = min(self.largest, limit or 1024)
        block = max(range(32, top + 1, 32), key=lambda size: (size * self.resident(size, shared), size))
        return OK, self.resident(block, shared) * 132, block


@pytest.fixture(scope="module")
def fake():
    return Occupied(capacity=1 << 20)


@pytest.fixture(scope="module")
def device(fake):
    return CudaDriver(0, Bindings(fake, "13.4.4"))


def test_a_grid_that_fills_the_device_or_covers_the_work(device):
    shape = launch_shape(device, KERNEL)
    assert (shape.block, shape.blocks_per_multiprocessor, shape.occupancy) == (1024, 2, 1.0)
    assert shape.grid == 264
    assert launch_shape(device, KERNEL, threads=10_000).grid == 10
    assert launch_shape(device, KERNEL, threads=10_241).grid == 11
    assert launch_shape(device, KERNEL, block_limit=256).block == 256


@given(registers=st.integers(1, 255), shared=st.integers(0, 100_000), limit=st.sampled_from([0, 96, 512]))
def test_a_function_of_the_block_size_gives_what_the_driver_would(fake, device, registers, shared, limit):
    fake.registers = registers
    try:
        fixed = launch_shape(device, KERNEL, shared_bytes=shared, block_limit=limit)
        asked = launch_shape(device, KERNEL, shared_bytes=lambda _: shared, block_limit=limit)
    finally:
        fake.registers = 32
    assert fixed == asked
    assert 0 <= asked.occupancy <= 1


def test_shared_memory_that_grows_with_the_block(device):
    shape = launch_shape(device, KERNEL, shared_bytes=lambda block: block * 228)
    assert shape.shared_bytes == shape.block * 228
    assert shape.blocks_per_multiprocessor * shape.shared_bytes <= SHARED
    assert shape.occupancy == 0.5


def test_wrong_arguments(device):
    for wrong in ({"threads": 0}, {"threads": 2.5}, {"threads": True}, {"block_limit": -1}):
        with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
            launch_shape(device, KERNEL, **wrong)
    with pytest.raises(DriverError, match="launch_shape"):
        launch_shape(device, KERNEL + 1)


def test_handles_in_what_others_call_a_kernel():
    class Handle:
        def __int__(self):
            return KERNEL

    names = types.SimpleNamespace
    library = names(get_cufunc=lambda: names(handle=Handle()))
    for kernel in (
        KERNEL,
        Handle(),
        names(handle=Handle()),
        names(ptr=KERNEL),
        names(function=KERNEL),
        names(kernel=names(ptr=KERNEL)),
        names(_codelibrary=library),
        names(overloads={"f4": names(_codelibrary=library)}),
    ):
        assert kernel_handle(kernel) == KERNEL
    for wrong in (None, 0, -5, True, "kernel", object(), print, names(handle=None), names(overloads={})):
        with pytest.raises(InvalidRequestError, match="loaded kernel"):
            kernel_handle(wrong)
