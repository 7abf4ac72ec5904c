"""Many threads on one driver: the books stay right, whoever is interrupted where."""

import random
import sys
import threading

import pytest
from fake_cuda import FakeCuda

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.errors import DriverError

linux = pytest.mark.skipif(sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone")
CAPACITY = 1 << 30


@pytest.fixture(params=["model", pytest.param("cpu", marks=linux), pytest.param("cuda", marks=linux)])
def driver(request):
    match request.param:
        case "model":
            return ModelDriver(CAPACITY)
        case "cpu":
            return CpuDriver(capacity=CAPACITY, granularity=64 << 10)
        case _:
            return CudaDriver(0, Bindings(FakeCuda(capacity=CAPACITY), "13.0.0"))


@pytest.fixture(autouse=True)
def frequent_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_with_memory_of_their_own(driver):
    unit, failures = driver.granularity, []
    shared = driver.reserve(8 * 4 * unit)

    def work(index):
        chance, mine = random.Random(index), shared + index * 4 * unit
        try:
            stream, event = driver.create_stream(), driver.create_event()
            for _ in range(60):
                raw = [driver.allocate(chance.randint(1, 100_000)) for _ in range(3)]
                chunks = [driver.create_chunk(unit) for _ in range(4)]
                for slot, chunk in enumerate(chunks):
                    driver.map_chunk(mine + slot * unit, chunk)
                driver.enable_access(mine, 4 * unit)
                driver.fill(mine, index, 64, stream)
                driver.record_event(event, stream)
                driver.wait_event(0, event)
                driver.synchronize_event(event)
                with pytest.raises(DriverError):
                    driver.map_chunk(mine, chunks[0])
                driver.unmap(mine, 4 * unit)
                for chunk in chunks:
                    driver.release_chunk(chunk)
                for address in raw:
                    driver.free(address)
            driver.destroy_event(event)
            driver.destroy_stream(stream)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        driver.check()
    assert not failures
    driver.unreserve(shared, 8 * 4 * unit)
    driver.check()
    assert not any(driver.held().values())


def test_one_of_many_wins(driver):
    """Eight threads release, unmap and free the same things: each is given back once."""
    unit = driver.granularity
    base = driver.reserve(unit)
    for _ in range(40):
        chunk, address = driver.create_chunk(unit), driver.allocate(100)
        won, start = [], threading.Barrier(8)

        def work(chunk=chunk, address=address, won=won, start=start):
            start.wait()
            for name, call in (
                ("map", lambda: driver.map_chunk(base, chunk)),
                ("free", lambda: driver.free(address)),
            ):
                try:
                    call()
                    won.append(name)
                except DriverError:
                    pass

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == ["free", "map"]
        driver.unmap(base, unit)
        driver.release_chunk(chunk)
    driver.unreserve(base, unit)
    assert not any(driver.held().values())
