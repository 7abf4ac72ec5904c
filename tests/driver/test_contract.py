"""The contract on every driver that needs no device; `tests/gpu` runs it on the real one."""

import sys

import pytest
from driver_contract import DriverContract
from fake_cuda import FakeCuda

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.driver.checked import CheckedDriver
from smartpool.driver.cuda import Bindings, CudaDriver

CAPACITY = 256 << 20

linux = pytest.mark.skipif(sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone")


class TestModel(DriverContract):
    @pytest.fixture
    def driver(self):
        return ModelDriver(CAPACITY)


@linux
class TestCpu(DriverContract):
    @pytest.fixture
    def driver(self):
        return CpuDriver(capacity=CAPACITY)


@linux
class TestCpuWithSmallPages(DriverContract):
    @pytest.fixture
    def driver(self):
        return CpuDriver(capacity=CAPACITY, granularity=64 << 10)


@linux
class TestCudaOverAFake(DriverContract):
    refuses = False

    @pytest.fixture
    def driver(self):
        return CudaDriver(0, Bindings(FakeCuda(capacity=CAPACITY), "13.4.4"))


@linux
class TestCheckedCudaOverAFake(DriverContract):
    @pytest.fixture
    def driver(self):
        return CheckedDriver(CudaDriver(0, Bindings(FakeCuda(capacity=CAPACITY), "13.4.4")))


class TestCheckedModel(DriverContract):
    """Two books agree."""

    @pytest.fixture
    def driver(self):
        return CheckedDriver(ModelDriver(CAPACITY))
