"""Debug mode on a GPU: planted overruns and uses after free are found, by work of the device itself."""

from __future__ import annotations

import pytest

from smartpool import DoubleFreeError, MiB, OverrunError, SmartPool, SmartPoolConfig, UseAfterFreeError
from smartpool.debug_options import DebugOptions
from smartpool.driver import open_driver
from smartpool.errors import SmartPoolError

try:
    open_driver("cuda:0").close()
except SmartPoolError as error:
    pytest.skip(str(error), allow_module_level=True)


def debugged(**options):
    return SmartPool("cuda:0", SmartPoolConfig(debug=DebugOptions(**options)))


@pytest.mark.parametrize("nbytes", [1, 1000, 3 * MiB + 7])
@pytest.mark.parametrize("before", [True, False])
def test_a_fill_on_the_blocks_stream_that_runs_over_is_found_when_it_is_freed(nbytes, before):
    with debugged() as pool:
        driver = pool.managers[0].driver
        stream = driver.create_stream()
        block = pool.malloc(nbytes, stream)
        begin = block - 3 if before else block
        driver.fill(begin, 0x11, nbytes + 3, stream)
        with pytest.raises(OverrunError) as caught:
            pool.free(block, stream)
        assert (caught.value.pointer, caught.value.nbytes) == (block, nbytes)
        assert caught.value.offset == (-3 if before else nbytes)
        assert "test_a_fill_on_the_blocks_stream" in caught.value.allocated_at
        pool.check()


@pytest.mark.parametrize("other", [True, False])
def test_work_that_is_queued_behind_the_free_is_found(other):
    with debugged() as pool:
        driver = pool.managers[0].driver
        stream = driver.create_stream()
        block = pool.malloc(MiB, stream)
        driver.fill(block, 1, MiB, stream)
        pool.free(block, stream)
        pool.check()
        late = driver.create_stream() if other else stream
        driver.fill(block + 4096, 2, 100, late)
        with pytest.raises(UseAfterFreeError) as caught:
            pool.check()
        assert caught.value.offset == 4096
        assert "100 bytes were written" in str(caught.value)


def test_a_copy_into_a_freed_block_is_found_before_it_is_reused():
    with debugged(quarantine_bytes=2 * MiB) as pool:
        driver = pool.managers[0].driver
        source, target = pool.malloc(MiB), pool.malloc(MiB)
        driver.fill(source, 5, MiB, 0)
        pool.free(target)
        driver.copy(target, source, MiB, 0)
        last = pool.malloc(MiB)
        with pytest.raises(UseAfterFreeError):
            pool.free(last)  # there is room for one of them in quarantine
        pool.free(source)


def test_a_correct_program_on_several_streams_is_left_alone():
    with debugged(quarantine_bytes=8 * MiB) as pool:
        driver = pool.managers[0].driver
        streams = [driver.create_stream() for _ in range(3)]
        for number in range(40):
            stream, other = streams[number % 3], streams[(number + 1) % 3]
            block = pool.malloc(100_000 + number, stream)
            driver.fill(block, number, 100_000 + number, stream)
            pool.managers[0].order_after(block, other)
            driver.fill(block, number + 1, 100_000 + number, other)
            pool.free(block)
        pool.check()
        pool.trim(wait=True)
        assert pool.managers[0].reserved_bytes == 0


def test_frameworks_that_write_inside_are_left_alone_and_outside_are_found():
    cupy = pytest.importorskip("cupy")
    with debugged() as pool:
        array = cupy.from_dlpack(pool.empty((100, 100), "float32"))
        array[:] = 3
        assert float(array.sum()) == 30_000
        del array
        pool.check()
        block = pool.malloc(400)
        outside = cupy.cuda.UnownedMemory(block, 404, None)
        cupy.ndarray(101, "float32", cupy.cuda.MemoryPointer(outside, 0))[:] = 1
        with pytest.raises(OverrunError) as caught:
            pool.free(block)
        assert caught.value.offset == 400


def test_a_double_free_names_both_places():
    with debugged() as pool:
        block = pool.malloc(100)
        pool.free(block)
        with pytest.raises(DoubleFreeError, match="freed at"):
            pool.free(block)
