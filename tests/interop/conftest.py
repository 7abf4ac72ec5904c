"""A pool on CUDA devices that are played by the cpu device, and frameworks that are played by fakes."""

import sys
from pathlib import Path

import pytest

import smartpool
from smartpool.driver import open_driver
from smartpool.driver.cuda import Bindings, CudaDriver

sys.path[:0] = [str(Path(__file__).parent / "kit"), str(Path(__file__).parents[1] / "driver" / "kit")]

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # the fake CUDA stands on the cpu device's virtual memory


@pytest.fixture
def fake_cuda():
    from fake_cuda import FakeCuda  # noqa: PLC0415 - found by the path above, where the platform can

    return FakeCuda(devices=2, capacity=96 << 20)


@pytest.fixture
def open_pool(fake_cuda, monkeypatch):
    """Return a function that makes pools on the fake devices; what is still open is closed in the end."""

    def open_fake(name):
        if name.startswith("cuda"):
            return CudaDriver(int(name.partition(":")[2] or 0), Bindings(fake_cuda, "13.4.4"))
        return open_driver(name)

    monkeypatch.setattr("smartpool.pool_set.open_driver", open_fake)
    opened = []

    def make(device="cuda:0", **options):
        options.setdefault("enable_auto_defragmentation", False)
        pool = smartpool.SmartPool(device, smartpool.SmartPoolConfig(**options))
        opened.append(pool)
        return pool

    yield make
    for pool in opened:
        pool.close()


@pytest.fixture
def pool(open_pool):
    return open_pool()


@pytest.fixture
def absent(monkeypatch):
    """Return a function that makes packages unimportable."""

    def hide(*names):
        for name in names:
            for loaded in [name, *(known for known in sys.modules if known.startswith(f"{name}."))]:
                monkeypatch.setitem(sys.modules, loaded, None)

    return hide
