"""The optimizer on a GPU: streams that frameworks take."""

from __future__ import annotations

import pytest

from smartpool import GPUMemoryOptimizer
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverNotInstalledError

try:
    KEEPER = open_driver("cuda:0")
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

MiB = 1 << 20


@pytest.fixture
def optimizer():
    with GPUMemoryOptimizer({"device_ids": [0], "streams_per_device": 2}) as optimizer:
        yield optimizer


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
