"""From names to drivers."""

import sys

import pytest

from smartpool.driver import CpuDriver, ModelDriver, open_driver
from smartpool.errors import DeviceNotFoundError, DriverNotInstalledError

GiB = 1 << 30


@pytest.mark.parametrize(
    ("name", "canonical", "capacity"),
    [
        ("model", "model:141GiB", 141 * GiB),
        ("model:80GiB", "model:80GiB", 80 * GiB),
        ("model:80GB", "model:78125000KiB", 80 * 10**9),
        ("model:80G", "model:80GiB", 80 * GiB),
        ("model:16PiB", "model:16PiB", 1 << 54),
        ("model:85899345920", "model:80GiB", 80 * GiB),
        ("model:1.5TiB", "model:1536GiB", 1536 * GiB),
        ("model:1000", "model:1000", 1000),
    ],
)
def test_models(name, canonical, capacity):
    driver = open_driver(name)
    assert isinstance(driver, ModelDriver)
    assert driver.name == canonical
    assert driver.memory_info().total == capacity
    assert open_driver(driver.name).memory_info().total == capacity


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_cpu(name):
    driver = open_driver(name)
    assert isinstance(driver, CpuDriver)
    assert driver.name == "cpu"
    info = driver.memory_info()
    assert 0 < info.free <= info.total


WRONG = """
    gpu cpu: cpu:1 CPU model: model:0 model:-1 model:big model:1.3 model:999999999TiB modelx
    cuda: cuda:-1 cuda:x cuda:0:1 cuda:² cuda0
"""


@pytest.mark.parametrize("name", [*WRONG.split(), f"cuda:{'9' * 5000}", "", None, 0, b"cpu"])
def test_everything_else_is_no_device_and_says_which_are(name):
    with pytest.raises(DeviceNotFoundError, match="'model:80GiB'") as caught:
        open_driver(name)
    assert len(str(caught.value)) < 500


def test_each_driver_is_its_own():
    first, second = open_driver("model:1GiB"), open_driver("model:1GiB")
    first.allocate(1000)
    assert second.held()["raw"] == 0


def test_a_missing_package_says_what_to_install(monkeypatch):
    from smartpool.driver.cuda import bindings  # noqa: PLC0415 - loaded only for CUDA

    bindings.load.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DriverNotInstalledError, match="pip install cuda-python"):
        open_driver("cuda")
