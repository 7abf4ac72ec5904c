from __future__ import annotations

import pytest

from smartpool.driver import open_driver
from smartpool.errors import ConfigurationError, UnsupportedError
from smartpool.trace import bundled
from smartpool.trace.replay import replay
from smartpool.trace.targets import open_device, open_target, target_names
from smartpool.trace.trace import Trace
from smartpool.units import MiB

TRACE = Trace.load(bundled("multistream-mix"))


@pytest.mark.parametrize("streams", ["one", "own"])
@pytest.mark.parametrize("device", ["model:4GiB", "cpu"])
@pytest.mark.parametrize("name", target_names())
def test_everything_plays_a_trace_on_every_device(name, device, streams):
    with open_target(name, device, capacity_bytes=4096 * MiB) as target:
        run = replay(TRACE, target, streams=streams)
    assert run.allocator == name
    assert run.failed_requests == 0
    assert run.peak_live_bytes == TRACE.peak_live_bytes <= run.peak_reserved_bytes
    assert run.driver_seconds > 0
    assert sum(run.driver_calls.values()) > 0


@pytest.mark.parametrize("name", target_names())
def test_a_device_too_small_fails_requests(name):
    with open_target(name, "model:4GiB", capacity_bytes=800 * MiB) as target:
        run = replay(TRACE, target)
    assert run.failed_requests > 0
    assert run.peak_live_bytes <= run.peak_reserved_bytes <= 800 * MiB
    assert run.device == "model:800MiB"


def test_everything_goes_back_to_the_device():
    for name in target_names():
        with open_target(name, "model:4GiB") as target:
            replay(TRACE, target)
            driver = target.manager.driver if name == "smartpool" else target._driver
            driver.close = lambda: None
        info = driver.memory_info()
        assert info.free == info.total, name


def test_ours_reserves_least():
    peaks = {}
    for name in ("smartpool", "pytorch", "pytorch-expandable", "cupy", "rmm"):
        with open_target(name, "model:4GiB") as target:
            peaks[name] = replay(TRACE, target).peak_reserved_bytes
    assert min(peaks, key=peaks.get) == "smartpool"


def test_policies_are_in_the_name():
    with open_target("smartpool", "model:4GiB", policy="tight") as target:
        assert target.name == "smartpool-tight"


def test_unknown_names_are_refused():
    with (
        pytest.raises(ConfigurationError, match=r"smartpool, pytorch.*'tcmalloc'"),
        open_target("tcmalloc", "model:1GiB"),
    ):
        pass
    with (
        pytest.raises(ConfigurationError, match="policy"),
        open_target("smartpool", "model:1GiB", policy="best"),
    ):
        pass


def test_a_capacity_never_makes_a_device_larger():
    assert open_device("model:1GiB", 1 << 40).name == "model:1GiB"
    assert open_device("model:1GiB").name == "model:1GiB"


def test_a_device_that_is_neither_cannot_be_made_smaller(monkeypatch):
    class Gpu:
        name = "cuda:0"

        def memory_info(self):
            return open_driver("model:1GiB").memory_info()

        def close(self):
            pass

    monkeypatch.setattr("smartpool.trace.targets.open_driver", lambda _: Gpu())
    with pytest.raises(UnsupportedError, match="cuda:0"):
        open_device("cuda:0", MiB)
