"""The optimizer on a GPU: launch shapes of real kernels, streams that frameworks take."""

from __future__ import annotations

import subprocess
import sys

import pytest

from smartpool import GPUMemoryOptimizer
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverError, DriverNotInstalledError

try:
    KEEPER = open_driver("cuda:0")
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

MiB = 1 << 20
SAXPY = r"""
extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"""
SHARED = r"""
extern "C" __global__ void sums(const float* x, float* y) {
    extern __shared__ float part[];
    part[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    if (!threadIdx.x) { float s = 0; for (int i = 0; i < blockDim.x; i++) s += part[i]; y[blockIdx.x] = s; }
}
"""


@pytest.fixture
def optimizer():
    with GPUMemoryOptimizer({"device_ids": [0], "streams_per_device": 2}) as optimizer:
        yield optimizer


def test_shapes_of_kernels_of_cupy(optimizer):
    cupy = pytest.importorskip("cupy")
    kernel = cupy.RawKernel(SAXPY, "saxpy")
    shape = optimizer.launch_shape(kernel, threads=1_000_000)
    assert shape.block % 32 == 0
    assert shape.grid * shape.block >= 1_000_000
    assert shape.occupancy == 1.0
    assert optimizer.launch_shape(kernel.kernel.ptr).block == shape.block
    assert optimizer.launch_shape(kernel, block_limit=128).block <= 128
    x, y = cupy.ones(1_000_000, dtype=cupy.float32), cupy.ones(1_000_000, dtype=cupy.float32)
    kernel((shape.grid,), (shape.block,), (cupy.int32(1_000_000), cupy.float32(2), x, y))
    assert float(y.sum()) == 3_000_000
    sums = cupy.RawKernel(SHARED, "sums")
    fixed = optimizer.launch_shape(sums, shared_bytes=40_000)
    asked = optimizer.launch_shape(sums, shared_bytes=lambda _: 40_000)
    assert fixed == asked
    grown = optimizer.launch_shape(sums, shared_bytes=lambda block: 4 * block)
    assert grown.shared_bytes == 4 * grown.block
    assert grown.occupancy == 1.0
    with pytest.raises(DriverError):
        optimizer.launch_shape(sums, shared_bytes=-5)


def test_shapes_of_kernels_of_numba(optimizer):
    """In a process of its own: importing Numba over NumPy's removed names warns, and once is enough."""
    pytest.importorskip("numba")
    code = """
import warnings; warnings.simplefilter("ignore")
import numpy
from numba import cuda
from smartpool import GPUMemoryOptimizer
@cuda.jit
def double(x):
    i = cuda.grid(1)
    if i < x.size:
        x[i] *= 2
data = cuda.to_device(numpy.ones(1 << 20, dtype=numpy.float32))
double[1 << 12, 256](data)
shape = GPUMemoryOptimizer().launch_shape(double, threads=1 << 20)
double[shape.grid, shape.block](data)
print(shape.block >= 32, data.copy_to_host().sum() == 4 << 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "has no attribute 'row_stack'" in done.stderr:
        pytest.skip("this Numba cannot compile a kernel beside this NumPy")
    assert done.stdout == "True True\n", done.stderr


def test_shapes_of_kernels_of_cuda_core(optimizer):
    core = pytest.importorskip("cuda.core")
    if not hasattr(core, "Program"):
        core = pytest.importorskip("cuda.core.experimental")
    core.Device(0).set_current()
    arch = core.Device(0).compute_capability
    options = core.ProgramOptions(arch=f"sm_{arch.major}{arch.minor}")
    module = core.Program(SAXPY, code_type="c++", options=options).compile("cubin")
    shape = optimizer.launch_shape(module.get_kernel("saxpy"), threads=5000)
    assert shape.occupancy == 1.0


def test_frameworks_take_the_streams(optimizer):
    cupy = pytest.importorskip("cupy")
    first, second = optimizer.streams().next(), optimizer.streams().next()
    assert optimizer.streams().next() is first
    with cupy.cuda.Stream.from_external(first):
        array = cupy.ones(1000)
    first.synchronize()
    assert float(array.sum()) == 1000
    with optimizer.streams().borrow() as mine:
        buffer = optimizer.pool.allocate(MiB, mine)
        assert optimizer.pool.managers[0].stream_of(buffer.pointer) == mine.handle
    torch = pytest.importorskip("torch")
    with torch.cuda.stream(torch.cuda.ExternalStream(second.handle)):
        assert torch.ones(10, device="cuda").sum() == 10
    core = pytest.importorskip("cuda.core")
    if hasattr(core, "Stream"):
        device = core.Device(0)
        device.set_current()
        assert int(device.create_stream(first).handle) == first.handle
