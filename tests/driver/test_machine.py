"""The state machine of the driver on every device that needs no hardware."""

import sys

import pytest
from driver_machine import DriverMachine
from fake_cuda import FakeCuda
from hypothesis import settings

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.driver.checked import CheckedDriver
from smartpool.driver.cuda import Bindings, CudaDriver

CAPACITY = 1 << 30


class ModelMachine(DriverMachine):
    readable = False

    def open(self):
        return ModelDriver(CAPACITY)


class CpuMachine(DriverMachine):
    fresh_is_zero = True

    def open(self):
        return CpuDriver(capacity=CAPACITY, granularity=64 << 10)


class FakeCudaMachine(DriverMachine):
    def open(self):
        fake = FakeCuda(capacity=CAPACITY)
        fake.cpus = [CpuDriver(capacity=CAPACITY, granularity=64 << 10)]
        return CheckedDriver(CudaDriver(0, Bindings(fake, "13.4.4")))


SETTINGS = settings(max_examples=60, stateful_step_count=40, deadline=None)
linux = pytest.mark.skipif(sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone")

TestModelMachine = ModelMachine.TestCase
TestModelMachine.settings = SETTINGS
TestCpuMachine = linux(CpuMachine.TestCase)
TestCpuMachine.settings = SETTINGS
TestFakeCudaMachine = linux(FakeCudaMachine.TestCase)
TestFakeCudaMachine.settings = SETTINGS
