"""The commands that look at devices, where there is a GPU."""

from __future__ import annotations

import pytest

from smartpool.cli.demo import show_buffers
from smartpool.cli.info import facts
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverNotInstalledError

try:
    open_driver("cuda:0").close()
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)


def test_the_demo_reads_a_copy_of_what_the_gpu_wrote():
    shown = show_buffers("cuda:0")
    assert shown["device"] == "cuda:0"
    assert not any(sight["shared"] for sight in shown["sights"])
    assert shown["reused"]


def test_info_tells_the_gpu():
    gpu = facts()["devices"][2]
    assert gpu["device"] == "cuda:0"
    assert 0 < gpu["free_bytes"] <= gpu["total_bytes"]
