"""Sleep and wake: every byte comes back, at the same address, whatever fails on the way."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smartpool import SmartPool
from smartpool.driver import open_driver
from smartpool.driver.cpu import CpuDriver
from smartpool.errors import AsleepError, DriverError, InvalidRequestError, OutOfMemoryError, SmartPoolError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.telemetry.labels import tagged
from smartpool.units import KiB, MiB

CAPACITY = 128 * MiB
TAGS = ("weights", "cache")
HERE = Path(__file__).parent  # on a disk


def pool_of(**settings):
    return SmartPool(CpuDriver(capacity=CAPACITY), enable_auto_defragmentation=False, **settings)


class SleepMachine(RuleBasedStateMachine):
    """Requests, frees, sleeps and wakes on memory that is remapped for real."""

    def __init__(self):
        super().__init__()
        self.pool = pool_of(sleep_tags=TAGS)
        self.driver = self.pool.managers[0].driver
        self.streams = [None, self.driver.create_stream()]
        self.live = {}  # address -> bytes, tag, mark
        self.asleep = set()
        self.dropped = set()  # addresses whose contents are gone
        self.marks = 0

    def is_asleep(self, tag):
        return tag in self.asleep

    @rule(
        size=st.sampled_from([0, 300, 60 * KiB, MiB, 3 * MiB + 512, 9 * MiB]),
        tag=st.sampled_from([None, *TAGS]),
        stream=st.integers(0, 1),
    )
    def malloc(self, size, tag, stream):
        try:
            if tag is None:
                pointer = self.pool.malloc(size, self.streams[stream])
            else:
                with self.pool.tag(tag):
                    pointer = self.pool.malloc(size, self.streams[stream])
        except AsleepError:
            assert self.is_asleep(tag)
            return
        except OutOfMemoryError:
            assert sum(block[0] for block in self.live.values()) > CAPACITY // 8
            return
        assert not self.is_asleep(tag)
        self.marks = self.marks % 255 + 1
        if size:
            self.driver.fill(pointer, self.marks, size, 0)
        self.live[pointer] = (size, tag, self.marks)

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 1 << 20), stream=st.integers(0, 1))
    def free(self, pick, stream):
        pointer = sorted(self.live)[pick % len(self.live)]
        self.pool.free(pointer, self.streams[stream])
        del self.live[pointer]
        self.dropped.discard(pointer)

    @rule(
        tags=st.sampled_from([None, "weights", "cache", TAGS]),
        keep=st.sampled_from(["host", "disk", "nothing"]),
    )
    def sleep(self, tags, keep):
        directory = HERE if keep == "disk" else None
        self.pool.sleep(tags, keep=keep, directory=directory)
        names = {None, *TAGS} if tags is None else {tags} if isinstance(tags, str) else set(tags)
        fresh = names - self.asleep
        if keep == "nothing":
            self.dropped |= {pointer for pointer, block in self.live.items() if block[1] in fresh}
        self.asleep |= names
        if self.asleep == {None, *TAGS}:
            assert self.driver.held()["chunks"] == 0

    @rule(tags=st.sampled_from([None, "weights", "cache", TAGS]))
    def wake(self, tags):
        self.pool.wake(tags)
        names = {None, *TAGS} if tags is None else {tags} if isinstance(tags, str) else set(tags)
        self.asleep -= names

    @rule()
    def trim(self):
        self.pool.trim(wait=True)

    @rule(
        call=st.sampled_from(
            ["unmap", "release_chunk", "create_chunk", "map_chunk", "enable_access", "copy_to_host",
             "copy_from_host", "allocate_host", "synchronize"]
        ),
        nth=st.integers(1, 4),
        wakes=st.booleans(),
    )  # fmt: skip
    def fails(self, call, nth, wakes):
        """One driver call fails: all that was to sleep sleeps, or all is awake, and so with wakes."""
        self.driver.faults.fail(call, nth=nth)
        before = {*self.asleep}
        with suppress(DriverError, AsleepError, OutOfMemoryError):
            self.pool.wake() if wakes else self.pool.sleep()
        self.driver.faults.clear()
        sleeping = {name or None for name in self.pool.managers[0].sleeping.asleep()}
        assert sleeping in (before, set() if wakes else {None, *TAGS})
        self.asleep = sleeping

    @invariant()
    def bytes_are_as_written(self):
        self.pool.check()
        for pointer, (size, tag, mark) in self.live.items():
            if tag in self.asleep:
                if size:
                    with pytest.raises(AsleepError):
                        self.pool.managers[0].stream_of(pointer)
            elif size and pointer not in self.dropped:
                assert self.driver.read(pointer, size) == bytes([mark]) * size

    def teardown(self):
        for pointer in self.live:
            self.pool.free(pointer)
        self.pool.close()
        self.driver.destroy_stream(self.streams[1])
        assert not any(self.driver.held().values())


SleepMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSleepMachine = SleepMachine.TestCase


def test_a_window_sleeps_with_the_chunks_that_it_shows():
    with pool_of(max_bytes=24 * MiB) as pool:
        driver = pool.managers[0].driver
        blocks = [pool.malloc(4 * MiB) for _ in range(6)]
        for block in blocks[::2]:
            pool.free(block)
        stitched = pool.malloc(10 * MiB)
        driver.write(stitched, b"ab" * (5 * MiB))
        for _ in range(2):
            pool.sleep()
            assert driver.held()["mappings"] == 0
            pool.wake()
            pool.check()
            assert driver.read(stitched, 10 * MiB) == b"ab" * (5 * MiB)
        for block in (stitched, *blocks[1::2]):
            pool.free(block)


def test_what_wakes_finds_the_memory_or_stays_asleep():
    driver = CpuDriver(capacity=64 * MiB)
    with SmartPool(driver, enable_auto_defragmentation=False) as pool:
        block = pool.malloc(40 * MiB)
        driver.write(block, b"x" * MiB)
        pool.sleep()
        neighbor = driver.allocate(30 * MiB)
        with pytest.raises(OutOfMemoryError, match="stays asleep"):
            pool.wake()
        assert driver.held()["chunks"] == 0
        driver.free(neighbor)
        pool.wake()
        assert driver.read(block, MiB) == b"x" * MiB
        pool.free(block)


def test_the_disk_is_checked_on_the_way_back(monkeypatch):
    with pool_of() as pool:
        buffer = pool.empty(3 * MiB, "uint8")
        buffer.memoryview()[:] = b"z" * (3 * MiB)
        pool.sleep(keep="disk", directory=HERE)
        preadv = os.preadv

        def spoiled(descriptor, buffers, offset):
            count = preadv(descriptor, buffers, offset)
            buffers[0][0] ^= 1
            return count

        monkeypatch.setattr(os, "preadv", spoiled)
        with pytest.raises(AsleepError, match="the disk gave something else"):
            pool.wake()
        monkeypatch.undo()
        pool.wake()
        assert bytes(buffer.memoryview()) == b"z" * (3 * MiB)


def test_a_full_disk_leaves_all_awake(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pool_of() as pool:
        buffer = pool.empty(3 * MiB, "uint8")
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(AsleepError, match="No space left"):
            pool.sleep(keep="disk", directory=HERE)
        assert len(buffer.memoryview()) == 3 * MiB


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory")
def test_memory_is_no_disk():
    with pool_of() as pool, pytest.raises(AsleepError, match="tmpfs"):
        pool.sleep(keep="disk", directory="/dev/shm")


def test_what_is_asked_wrongly_is_refused():
    with pool_of(sleep_tags=("weights",)) as pool:
        for tags, keep, directory in (("cache", "host", None), (None, "ram", None), (None, "disk", None)):
            with pytest.raises(InvalidRequestError):
                pool.sleep(tags, keep=keep, directory=directory)


def test_blocks_of_a_tag_share_no_chunk_with_others():
    with SmartPool("model:1GiB", sleep_tags=("weights",), enable_auto_defragmentation=False) as pool:
        manager = pool.managers[0]
        held = []
        for step in range(40):
            held.append(pool.malloc(step * 9000))
            with pool.tag("weights"):
                held.append(pool.malloc(step * 9000))
        heap = {block.start for block in manager.memory()}
        for pointer in held[1::2]:
            (chunk,) = manager.driver.mapped(pointer, 1)
            assert chunk.address not in heap
        for pointer in held[1::2]:
            pool.free(pointer)
        before = manager.reserved_bytes
        assert pool.trim(before) == 0 or manager.reserved_bytes < before
        for pointer in held[::2]:
            pool.free(pointer)


@pytest.mark.parametrize("closes", [True, False])
def test_a_pool_may_end_asleep(closes):
    driver = CpuDriver(capacity=CAPACITY)
    manager = AdvancedMemoryPoolManager(driver, {"sleep_tags": ("weights",)})
    with tagged("weights"):
        pointer = manager.malloc(5 * MiB)
    other = manager.malloc(3 * MiB)
    manager.sleeping.sleep()
    if closes:
        manager.close()
        manager.free(pointer)
        manager.free(other)
    del manager
    assert not any(driver.held().values())


def test_every_driver_call_fails():
    """Each call of a sleep and a wake, once: asleep or awake, the bytes right, and nothing lost."""

    def scene(driver, nth):
        pool = SmartPool(driver, sleep_tags=("weights",), enable_auto_defragmentation=False)
        with pool.tag("weights"):
            apart = pool.malloc(3 * MiB)
        block = pool.malloc(5 * MiB)
        for at in (apart, block):
            driver.fill(at, 9, 3 * MiB, 0)
        fault = driver.faults.fail("*", nth=nth, error=[None, KeyboardInterrupt(), MemoryError()][nth % 3])
        for call in (pool.sleep, pool.wake):
            with suppress(SmartPoolError, KeyboardInterrupt, MemoryError):
                call()
        driver.faults.clear()
        pool.wake()
        pool.check()
        assert all(driver.read(at, 3 * MiB) == b"\t" * (3 * MiB) for at in (apart, block))
        for at in (apart, block):
            pool.free(at)
        pool.close()
        assert not any(driver.held().values()), driver.held()
        return bool(fault.fired)

    nth = 1
    while scene(CpuDriver(capacity=CAPACITY), nth):
        nth += 1
    assert nth > 20


def test_what_lives_long_lies_apart():
    from smartpool import AllocationRequest  # noqa: PLC0415

    with SmartPool(open_driver("model:1GiB"), enable_auto_defragmentation=False) as pool:
        kept = [
            pool.allocate_memory(AllocationRequest(size=100, hint_access_pattern="weights")),
            pool.allocate_memory(AllocationRequest(size=100, hint_access_pattern="persistent")),
            pool.allocate_memory(AllocationRequest(size=100, hint_lifetime=1e5)),
            pool.allocate_memory(AllocationRequest(size=100, hint_lifetime=10.0)),
        ]
        driver = pool.managers[0].driver
        chunks = [driver.mapped(result.buffer.pointer, 1)[0].chunk for result in kept]
        assert chunks[1] == chunks[2]
        assert len(set(chunks)) == 3
        for result in kept:
            pool.deallocate_memory(result.allocation_id)
        del kept, result
        pool.trim(wait=True)
        assert driver.held()["chunks"] == 0
