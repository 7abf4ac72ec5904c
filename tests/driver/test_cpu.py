"""The cpu device: real pages, seen from outside the driver."""

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smartpool.driver import CpuDriver, cpu, pages
from smartpool.errors import DriverError, DriverOutOfMemoryError, InvalidSizeError, UnsupportedError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone"
)

UNIT = 2 << 20


@pytest.fixture
def driver():
    driver = CpuDriver(capacity=256 << 20)
    yield driver
    driver.check()
    driver.close()


def mapped(driver, units=1, at=0):
    base, chunk = driver.reserve(16 * UNIT), driver.create_chunk(units * UNIT)
    driver.map_chunk(base + at * UNIT, chunk)
    driver.enable_access(base + at * UNIT, units * UNIT)
    return base, chunk


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def resident(driver):
    """Bytes that the chunks really take."""
    return os.fstat(driver._chunk_file.file.fileno()).st_blocks * 512


def address_space():
    """(start, end, permissions, file) of every mapping of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        yield start, end, permissions, name[0] if name else ""


def shown(base, size):
    """How the system sees [base, base + size): (bytes, permissions, whether it is a chunk), joined."""
    row = []
    for start, end, permissions, name in address_space():
        length = min(end, base + size) - max(start, base)
        if length > 0:
            row.append((length // UNIT, permissions, "smartpool" in name))
    joined = []
    for length, *kind in row:
        if joined and joined[-1][1:] == kind:
            joined[-1][0] += length
        else:
            joined.append([length, *kind])
    return joined


NOTHING, READY, SHUT = ["---p", False], ["rw-s", True], ["---s", True]


def test_the_system_sees_what_the_books_say(driver):
    base = driver.reserve(16 * UNIT)
    assert shown(base, 16 * UNIT) == [[16, *NOTHING]]
    first, second = driver.create_chunk(2 * UNIT), driver.create_chunk(3 * UNIT)
    driver.map_chunk(base + UNIT, first)
    driver.map_chunk(base + 3 * UNIT, second)
    driver.map_chunk(base + 10 * UNIT, second)
    assert shown(base, 16 * UNIT) == [[1, *NOTHING], [5, *SHUT], [4, *NOTHING], [3, *SHUT], [3, *NOTHING]]
    driver.enable_access(base + UNIT, 5 * UNIT)
    assert shown(base, 16 * UNIT) == [[1, *NOTHING], [5, *READY], [4, *NOTHING], [3, *SHUT], [3, *NOTHING]]
    driver.unmap(base + 3 * UNIT, 13 * UNIT)
    assert shown(base, 16 * UNIT) == [[1, *NOTHING], [2, *READY], [13, *NOTHING]]
    driver.unmap(base, 16 * UNIT)
    assert shown(base, 16 * UNIT) == [[16, *NOTHING]]
    driver.unreserve(base, 16 * UNIT)
    assert not any(kind == NOTHING for _, *kind in shown(base, 16 * UNIT))


def test_reservations_stay_whole_beside_one_another(driver):
    """Each is cut out of a larger range: the cut must not touch its neighbors."""
    bases = [driver.reserve((1 + index % 3) * UNIT) for index in range(30)]
    for index, base in enumerate(bases):
        assert sum(length for length, *_ in shown(base, (1 + index % 3) * UNIT)) == 1 + index % 3


def test_chunks_are_apart(driver):
    base = driver.reserve(16 * UNIT)
    for index in range(8):
        driver.map_chunk(base + 2 * index * UNIT, driver.create_chunk(UNIT))
        driver.enable_access(base + 2 * index * UNIT, UNIT)
        driver.fill(base + 2 * index * UNIT, index + 1, UNIT, 0)
    for index in range(8):
        assert driver.read(base + 2 * index * UNIT, UNIT) == bytes((index + 1,)) * UNIT


def test_the_process_itself_reads_what_the_driver_writes(driver):
    base, chunk = mapped(driver)
    driver.map_chunk(base + 8 * UNIT, chunk)
    driver.enable_access(base + 8 * UNIT, UNIT)
    driver.write(base + 100, b"smartpool")
    assert ctypes.string_at(base + 8 * UNIT + 100, 9) == b"smartpool"
    ctypes.memset(base + 8 * UNIT, 0x41, 4)
    assert driver.read(base, 5) == b"AAAA\0"


def test_fresh_memory_is_zero_and_costs_nothing_until_touched(driver):
    base, chunk = mapped(driver, units=8)
    assert resident(driver) == 0
    assert driver.read(base + 7 * UNIT, 4096) == bytes(4096)
    driver.fill(base, 1, 3 * UNIT, 0)
    assert 3 * UNIT <= resident(driver) <= 4 * UNIT
    driver.unmap(base, 16 * UNIT)
    assert resident(driver) >= 3 * UNIT
    driver.release_chunk(chunk)
    assert resident(driver) == 0
    again = driver.create_chunk(8 * UNIT)
    driver.map_chunk(base, again)
    driver.enable_access(base, 8 * UNIT)
    assert driver.read(base, 4096) == bytes(4096)


def test_one_open_file_for_any_number_of_chunks(driver):
    mapped(driver)
    before = open_files()
    for _ in range(50):
        driver.create_chunk(UNIT)
    assert open_files() == before


def test_the_file_is_closed_when_all_is_given_back():
    driver = CpuDriver(capacity=64 << 20)
    before = open_files()
    chunk = driver.create_chunk(UNIT)
    driver.close()
    assert open_files() == before + 1
    driver.release_chunk(chunk)
    assert open_files() == before
    driver.close()


def test_the_file_is_closed_with_a_driver_that_was_dropped():
    gc.collect()  # files of earlier tests
    before = open_files()
    driver = CpuDriver(capacity=64 << 20)
    base, _ = mapped(driver)
    driver.fill(base, 9, UNIT, 0)
    del driver
    gc.collect()
    assert open_files() == before
    assert ctypes.string_at(base, 2) == b"\x09\x09"  # what is mapped stays


def test_a_finaliser_in_a_cycle_of_garbage_gives_everything_back():
    """The collector closes the file before it calls the finaliser that releases the chunk."""
    done = []

    class Holder:
        def __init__(self):
            self.driver, self.me = CpuDriver(capacity=64 << 20), self
            self.base, self.chunk = mapped(self.driver)

        def __del__(self):
            self.driver.unmap(self.base, 16 * UNIT)
            self.driver.release_chunk(self.chunk)
            self.driver.unreserve(self.base, 16 * UNIT)
            self.driver.close()
            done.append(self.driver.held())

    before = open_files()
    Holder()
    gc.collect()
    assert [any(held.values()) for held in done] == [False]
    assert open_files() == before


def test_a_closed_file_is_not_mapped(driver):
    """Its number may be another file's by then."""
    base, chunk = driver.reserve(UNIT), driver.create_chunk(UNIT)
    driver._chunk_file.close()
    with pytest.raises(DriverError, match="EBADF"):
        driver.map_chunk(base, chunk)
    driver.release_chunk(chunk)


def test_raw_memory_outlives_the_driver():
    driver = CpuDriver(capacity=64 << 20)
    address = driver.allocate(100_000)
    driver.fill(address, 5, 100_000, 0)
    del driver
    gc.collect()
    assert ctypes.string_at(address + 99_999, 1) == b"\x05"


TOUCHES = {
    "reserved": "",
    "mapped, no access": "d.map_chunk(b, c)",
    "unmapped again": "d.map_chunk(b, c); d.enable_access(b, u); d.unmap(b, u)",
    "mapped again, no access": "d.map_chunk(b, c); d.enable_access(b, u); d.unmap(b, u); d.map_chunk(b, c)",
    "beyond": "d.map_chunk(b, c); d.enable_access(b, u); b += u",
}


@pytest.mark.parametrize("case", TOUCHES)
def test_memory_without_access_faults_for_real(case):
    code = f"""
import ctypes, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from smartpool.driver import CpuDriver
d = CpuDriver(capacity=1 << 26); u = d.granularity; b = d.reserve(4 * u); c = d.create_chunk(u)
{TOUCHES[case]}
print("before", flush=True); ctypes.memset(b, 1, 1); print("after")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-11, "before\n"), done.stderr


def test_failures_of_the_system_change_nothing(driver, monkeypatch):
    """Every system call fails once: the error is ours and the books are as before."""
    base, chunk = mapped(driver)
    idle, raw = driver.create_chunk(UNIT), driver.allocate(100)
    bare = driver.reserve(UNIT)
    before = driver.held(), driver.memory_info()

    def fail(*_):
        ctypes.set_errno(12)
        return pages._MAP_FAILED

    for function, call, arguments in (
        ("_mmap", driver.map_chunk, (base + UNIT, idle)),
        ("_mmap", driver.unmap, (base, UNIT)),
        ("_mmap", driver.reserve, (UNIT,)),
        ("_mmap", driver.allocate, (UNIT,)),
        ("_mprotect", driver.enable_access, (base, UNIT)),
        ("_munmap", driver.unreserve, (bare, UNIT)),
        ("_munmap", driver.free, (raw,)),
        ("_fallocate", driver.release_chunk, (idle,)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(pages, function, fail)
            with pytest.raises(DriverError) as caught:
                call(*arguments)
        assert caught.value.code == "ENOMEM"
        assert caught.value.call == call.__name__
        assert isinstance(caught.value, DriverOutOfMemoryError) == (call.__name__ == "allocate")
        assert (driver.held(), driver.memory_info()) == before
        driver.check()
    driver.write(base, b"still here")
    assert driver.read(base, 10) == b"still here"
    assert chunk


def test_too_many_mappings_is_said(monkeypatch):
    driver = CpuDriver(capacity=64 << 20)
    base, chunk = driver.reserve(UNIT), driver.create_chunk(UNIT)
    monkeypatch.setattr(pages, "_mmap", lambda *_: (ctypes.set_errno(12) and None) or pages._MAP_FAILED)
    with pytest.raises(DriverError, match="max_map_count"):
        driver.map_chunk(base, chunk)


def test_a_file_that_cannot_grow(driver, monkeypatch):
    def full(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr(pages.os, "ftruncate", full)
    with pytest.raises(DriverOutOfMemoryError) as caught:
        driver.create_chunk(UNIT)
    assert caught.value.code == "ENOSPC"
    assert not any(driver.held().values())
    monkeypatch.undo()
    driver.release_chunk(driver.create_chunk(UNIT))


def test_reservations_are_aligned_for_any_granularity():
    driver = CpuDriver(capacity=64 << 20, granularity=32 << 20)
    for _ in range(4):
        assert driver.reserve(64 << 20) % (32 << 20) == 0


@pytest.mark.parametrize("granularity", [0, -4096, 1000, 3 * 4096])
def test_granularity_is_a_power_of_two_of_pages(granularity):
    with pytest.raises(InvalidSizeError, match="granularity"):
        CpuDriver(granularity=granularity)


def test_capacity_is_positive():
    with pytest.raises(InvalidSizeError, match="capacity"):
        CpuDriver(capacity=0)


def test_total_is_the_machine_or_the_container(monkeypatch, tmp_path):
    total = cpu.physical_memory()
    assert 0 < total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cpu, "_LIMITS", (str(limit), str(tmp_path / "missing")))
    for text, expected in (("1048576\n", 1048576), ("max\n", cpu._meminfo("MemTotal"))):
        limit.write_text(text)
        assert cpu.physical_memory() == expected


def test_without_proc_there_is_still_a_total(monkeypatch):
    monkeypatch.setattr(cpu, "_MEMINFO", Path("/nowhere"))
    monkeypatch.setattr(cpu, "_LIMITS", ())
    assert cpu.physical_memory() > 0
    driver = CpuDriver()
    assert driver.memory_info().free == driver.memory_info().total


@pytest.mark.parametrize("system_calls", [True, False])
def test_elsewhere_there_is_raw_memory_alone(monkeypatch, system_calls):
    monkeypatch.setattr(pages, "VIRTUAL", False)
    monkeypatch.setattr(pages, "RAW", system_calls)
    driver = CpuDriver(capacity=64 << 20)
    assert driver.granularity == 0
    address = driver.allocate(5000)
    driver.write(address, b"raw")
    assert driver.read(address, 3) == b"raw"
    for call in (
        lambda: driver.reserve(4096),
        lambda: driver.unreserve(0, 4096),
        lambda: driver.create_chunk(4096),
        lambda: driver.release_chunk(1),
        lambda: driver.map_chunk(0, 1),
        lambda: driver.enable_access(0, 4096),
        lambda: driver.unmap(0, 4096),
    ):
        with pytest.raises(UnsupportedError, match="raw allocations"):
            call()
    driver.free(address)
    assert not pages._objects
    driver.check()


def test_a_system_that_has_no_memory(monkeypatch):
    monkeypatch.setattr(pages, "RAW", False)
    driver = CpuDriver(capacity=1 << 62)
    with pytest.raises(DriverOutOfMemoryError):
        driver.allocate(1 << 61)
