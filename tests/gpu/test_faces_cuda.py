"""The faces on a CUDA device: contents under remapping, the background optimiser, the commands."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

import smartpool
from smartpool.driver import open_driver
from smartpool.errors import (
    DeviceNotFoundError,
    DoubleFreeError,
    DriverNotInstalledError,
    OutOfMemoryError,
    RequestTooLargeError,
    StreamError,
    UnknownPointerError,
)

try:
    KEEPER = open_driver("cuda:0")
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

MiB, GiB = 1 << 20, 1 << 30


@pytest.fixture
def pool():
    with smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(max_bytes=2 * GiB)) as pool:
        yield pool
        KEEPER.synchronize()
        pool.check()


def test_contents_survive_remapping_on_two_streams(pool):
    """Every block is filled behind its predecessor's work and must keep its bytes until it is freed."""
    dice = random.Random(1)
    driver = pool.managers[0].driver
    streams = [None, driver.create_stream(), driver.create_stream()]
    live = {}
    for step in range(3000):
        if live and (len(live) > 60 or dice.random() < 0.45):
            pointer = dice.choice(list(live))
            size, value, _ = live.pop(pointer)
            if step % 5 == 0:
                seen = driver.read(pointer, size)
                assert seen == bytes([value]) * size, (step, size)
            pool.free(pointer)
        else:
            size = int(2 ** dice.uniform(0, 24))
            stream, value = dice.choice(streams), dice.randrange(256)
            pointer = pool.malloc(size, stream)
            driver.fill(pointer, value, size, stream or 0)
            live[pointer] = (size, value, stream)
        if step % 500 == 499:
            pool.trim()
            pool.check()
    for pointer, (size, value, _) in live.items():
        assert driver.read(pointer, size) == bytes([value]) * size
        pool.free(pointer)
    for stream in streams[1:]:
        driver.synchronize(stream)
    pool.trim(wait=True)
    assert pool.managers[0].reserved_bytes == 0


def test_a_stream_that_its_owner_destroyed(pool):
    """Memory was freed behind its work; the pool has recorded no event there yet, and cannot any more."""
    owner = open_driver("cuda:0")
    for round_ in range(5):
        stream = owner.create_stream()
        victim = pool.malloc(64 * MiB, stream)
        for _ in range(20):
            owner.fill(victim, 1, 64 * MiB, stream)
        pool.free(victim)
        owner.destroy_stream(stream)  # its work goes on
        again = pool.malloc(63 * MiB)
        owner.fill(again, 2, 63 * MiB, 0)
        assert owner.read(again, 63 * MiB) == b"\2" * (63 * MiB), round_
        pool.free(again)
        pool.trim()
    owner.close()


def test_bad_input_leaves_the_pool_intact(pool):
    pointer = pool.malloc(1000)
    pool.free(pointer)
    with pytest.raises(DoubleFreeError):
        pool.free(pointer)
    foreign = KEEPER.allocate(512)
    with pytest.raises(UnknownPointerError, match="free it with the allocator that returned it"):
        pool.free(foreign)
    KEEPER.free(foreign)
    for stream in (3, -1, "0", 1.5, object()):
        with pytest.raises(StreamError):
            pool.malloc(100, stream)
    with pytest.raises(RequestTooLargeError):
        pool.malloc(1 << 45)
    kept = pool.malloc(GiB)
    with pytest.raises(OutOfMemoryError, match="largest free range"):
        pool.malloc(3 * GiB // 2)
    pool.free(kept)
    pool.check()


def test_a_child_process_after_a_fork_is_told():
    program = """
import os, warnings, smartpool
warnings.simplefilter("ignore", DeprecationWarning)  # what is tested is what it warns of
pool = smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(enable_auto_defragmentation=False))
pool.free(pool.malloc(1000))
if os.fork() == 0:
    try:
        pool.malloc(1 << 30)
    except smartpool.SmartPoolError as error:
        os._exit(7 if "spawn" in str(error) else 8)
    os._exit(9)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = run("-c", program)
    assert (done.returncode, done.stderr) == (7, "")


def test_the_background_optimiser_gives_idle_memory_back():
    config = smartpool.SmartPoolConfig(optimization_interval=0.05, fragmentation_threshold=0.1)
    with smartpool.SmartPool("cuda:0", config) as pool:
        kept = pool.malloc(MiB)
        pool.free(pool.malloc(256 * MiB))
        KEEPER.synchronize()
        wait_until(lambda: pool.managers[0].reserved_bytes <= 64 * MiB)
        assert pool.statistics.background_passes > 0
        assert pool.statistics.background_error is None
        pool.free(kept)


def test_the_original_face():
    optimizer = smartpool.GPUMemoryOptimizer({"enable_smart_pool": True, "device_ids": [0]})
    pool = smartpool.integrate_smartpool_with_gpu_optimizer(optimizer)
    result = pool.allocate_memory(smartpool.AllocationRequest(size=10 * MiB, device_id=0, priority=1))
    buffer, allocation_id = result
    assert buffer.device == "cuda:0"
    pool.deallocate_memory(allocation_id)
    outcome = pool.optimize_memory()
    assert outcome.memory_freed_mb >= 10
    pool.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(Path(smartpool.__file__).parents[1]), *sys.path]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )


@pytest.mark.parametrize("command", [["info"], ["demo", "--device", "cuda:0"]])
def test_commands(command):
    done = run("-m", "smartpool", *command)
    assert done.returncode == 0, done.stderr
    assert "cuda:0" in done.stdout
