"""What owns memory or a device is there once: no copy, no pickle."""

from __future__ import annotations

import copy
import pickle

import pytest

import smartpool
from smartpool import UnsupportedError
from smartpool.driver import open_driver


def pools():
    yield smartpool.SmartPool("cpu")
    yield smartpool.SmartPool("model:1GiB", debug=True)


def owners():
    for pool in pools():
        yield from (pool, pool.managers[0], pool.managers[0].driver)
    optimizer = smartpool.GPUMemoryOptimizer({"devices": ["model:1GiB"]})
    yield from (optimizer, optimizer.pool, optimizer.streams())
    yield smartpool.SmartPool("cpu").empty(3)
    pool = smartpool.SmartPool("cpu")
    stream = pool.managers[0].driver.create_stream()
    with pool.capture(stream) as memory:
        pass
    yield memory


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_owners_are_neither_copied_nor_pickled(way):
    for owner in owners():
        with pytest.raises(UnsupportedError, match="cannot be copied or pickled") as caught:
            way(owner)
        assert caught.value.__cause__ is None
        with pytest.raises(UnsupportedError):
            way({"nested": [owner]}) if way is not copy.copy else way(owner)


def test_a_refused_copy_leaves_the_pool_as_it_was():
    for pool in pools():
        with pool:
            held = pool.malloc(1000)
            with pytest.raises(UnsupportedError, match="1000 B live"):
                copy.copy(pool)
            assert pool.managers[0].live_bytes == 1000
            pool.free(held)
            pool.check()


def test_values_are_copied_as_ever():
    driver = open_driver("model:1GiB")
    with smartpool.SmartPool(driver, record=True) as pool:
        pool.free(pool.malloc(1000))
        for value in (
            pool.config,
            pool.statistics,
            pool.stop_recording(),
            smartpool.AllocationRequest(size=1),
        ):
            assert type(copy.deepcopy(value)) is type(copy.copy(value)) is type(value)
        assert pickle.loads(pickle.dumps(pool.config)) == pool.config
