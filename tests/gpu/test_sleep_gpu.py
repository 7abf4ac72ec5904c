"""Sleep and wake on the device: bytes, addresses, what the device gets back."""

from pathlib import Path

import pytest

import smartpool
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverNotInstalledError
from smartpool.units import MiB

try:
    open_driver("cuda:0").close()
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.mark.parametrize("keep", ["host", "disk", "nothing"])
def test_sleep_and_wake(keep):
    with smartpool.SmartPool("cuda:0", sleep_tags=["weights"], enable_auto_defragmentation=False) as pool:
        driver = pool.managers[0].driver
        with pool.tag("weights"):
            apart = [pool.malloc(size * MiB + 512) for size in (1, 60, 200)]
        others = [pool.malloc(size * MiB) for size in (3, 70)]
        for mark, pointer in enumerate((*apart, *others)):
            driver.fill(pointer, mark + 1, MiB, 0)
        directory = Path(__file__).parent if keep == "disk" else None
        for tags in ("weights", None):
            free = driver.memory_info().free
            (outcome,) = pool.sleep(tags, keep=keep, directory=directory)
            assert driver.memory_info().free - free >= outcome.bytes * 0.9
            pool.wake()
            pool.check()
            for mark, pointer in enumerate((*apart, *others)):
                if keep != "nothing":
                    assert driver.read(pointer, MiB) == bytes([mark + 1]) * MiB
        for pointer in (*apart, *others):
            pool.free(pointer)
