"""Chunks of one process in another driver: the same bytes, for as long as anybody holds them."""

from __future__ import annotations

import errno
import os
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
from fake_cuda import FakeCuda

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.errors import DriverError, UnsupportedError

if sys.platform != "linux":
    pytest.skip("file descriptors of memory are Linux's", allow_module_level=True)

import fcntl

UNIT = 2 << 20


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def cpu_pair():
    return CpuDriver(capacity=64 << 20), CpuDriver(capacity=64 << 20)


def cuda_pair():
    """Two processes are two machines to the fake: nothing is shared but the descriptor."""
    return tuple(CudaDriver(0, Bindings(FakeCuda(capacity=64 << 20), "13.4.4")) for _ in range(2))


@pytest.fixture(params=[cpu_pair, cuda_pair], ids=["cpu", "cuda"])
def pair(request):
    drivers = request.param()
    yield drivers
    for driver in drivers:
        driver.check()


def show(driver, chunk, size=UNIT):
    base = driver.reserve(size)
    driver.map_chunk(base, chunk)
    driver.enable_access(base, size)
    return base


def hand_over(owner, other, chunk, size=UNIT):
    descriptor = owner.export_chunk(chunk)
    try:
        return other.import_chunk(descriptor, size)
    finally:
        os.close(descriptor)


def test_both_read_and_write_the_same_bytes(pair):
    owner, other = pair
    owner.share_chunks()
    chunk = owner.create_chunk(2 * UNIT)
    here = show(owner, chunk, 2 * UNIT)
    there = show(other, hand_over(owner, other, chunk, 2 * UNIT), 2 * UNIT)
    owner.write(here + UNIT - 2, b"from owner")
    assert other.read(there + UNIT - 2, 10) == b"from owner"
    other.write(there, b"back")
    assert owner.read(here, 4) == b"back"


def test_the_memory_lives_as_long_as_anybody_holds_it(pair):
    owner, other = pair
    owner.share_chunks()
    chunk = owner.create_chunk(UNIT)
    here = show(owner, chunk)
    owner.write(here, b"kept")
    taken = hand_over(owner, other, chunk)
    owner.unmap(here, UNIT)
    owner.release_chunk(chunk)
    there = show(other, taken)
    assert other.read(there, 4) == b"kept"
    other.unmap(there, UNIT)
    other.release_chunk(taken)


def test_a_chunk_is_released_and_made_again_without_a_trace_of_the_other(pair):
    owner, _ = pair
    owner.share_chunks()
    for _ in range(3):
        chunk = owner.create_chunk(UNIT)
        base = show(owner, chunk)
        assert owner.read(base, 4) == bytes(4)
        owner.write(base, b"used")
        owner.unmap(base, UNIT)
        owner.release_chunk(chunk)
        owner.unreserve(base, UNIT)


def test_no_descriptor_is_left_behind():
    before = open_files()
    owner, other = cpu_pair()
    owner.share_chunks()
    for _ in range(5):
        chunk = owner.create_chunk(UNIT)
        taken = hand_over(owner, other, chunk)
        for driver, handle in ((owner, chunk), (other, taken)):
            driver.release_chunk(handle)
    left = [owner.create_chunk(UNIT), owner.create_chunk(UNIT)]
    assert open_files() == before + len(left)
    del owner, other  # the files of chunks go with their driver
    assert open_files() == before


def test_chunks_from_before_cannot_be_exported():
    owner, _ = cpu_pair()
    early = owner.create_chunk(UNIT)
    owner.share_chunks()
    with pytest.raises(DriverError, match="shareable=True"):
        owner.export_chunk(early)
    base = owner.reserve(2 * UNIT)
    owner.map_chunk(base, early)
    owner.map_chunk(base + UNIT, owner.create_chunk(UNIT))
    assert [item.address for item in owner.mapped(base + UNIT - 1, 2)] == [base, base + UNIT]


def test_what_is_no_chunk_is_refused(pair):
    owner, other = pair
    owner.share_chunks()
    with pytest.raises(DriverError, match="no such chunk"):
        owner.export_chunk(77)
    for size in (0, UNIT - 1, -UNIT):
        with pytest.raises(DriverError, match="import_chunk"):
            other.import_chunk(0, size)
    other.close()
    with pytest.raises(DriverError, match="CLOSED"):
        other.import_chunk(0, UNIT)


def test_a_descriptor_of_another_size_is_refused():
    owner, other = cpu_pair()
    owner.share_chunks()
    descriptor = owner.export_chunk(owner.create_chunk(UNIT))
    try:
        with pytest.raises(DriverError, match=f"expected a file of {2 * UNIT} bytes, got {UNIT}"):
            other.import_chunk(descriptor, 2 * UNIT)
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(descriptor, 0)  # whoever is given a chunk cannot take it away from the others
    finally:
        os.close(descriptor)
    with pytest.raises(DriverError, match="EBADF"):
        other.import_chunk(descriptor, UNIT)


def a_memory_file(flags=os.MFD_ALLOW_SEALING, seals=0):
    file = os.memfd_create("stranger's", flags)
    os.ftruncate(file, UNIT)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (a_memory_file, "sealed against shrinking"),
        (partial(a_memory_file, flags=0), "sealed against shrinking"),
        (partial(a_memory_file, seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL), "sealed against shrinking"),
        (lambda: os.open(os.curdir, os.O_RDONLY), "EINVAL"),
        (lambda: os.open("/dev/zero", os.O_RDWR), "EINVAL"),
        (lambda: socket.socket().detach(), "EINVAL"),
    ],
)
def test_what_a_stranger_could_cut_short_or_is_no_memory_is_refused(make, match):
    """Touching a page that its file has lost is the end of the process (SIGBUS)."""
    _, other = cpu_pair()
    descriptor, before = make(), open_files()
    try:
        with pytest.raises(DriverError, match=match):
            other.import_chunk(descriptor, UNIT)
        assert open_files() == before
    finally:
        os.close(descriptor)


def test_a_seal_against_shrinking_is_all_that_it_takes():
    _, other = cpu_pair()
    descriptor = a_memory_file(seals=fcntl.F_SEAL_SHRINK)
    base = show(other, other.import_chunk(descriptor, UNIT))
    os.close(descriptor)
    assert other.read(base, 4) == bytes(4)


def test_without_descriptors_chunks_say_what_to_do(monkeypatch):
    def none_left(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    owner, other = cpu_pair()
    owner.share_chunks()
    chunk = owner.create_chunk(UNIT)
    with monkeypatch.context() as patch:
        patch.setattr("os.memfd_create", none_left)
        patch.setattr("fcntl.fcntl", none_left)
        for call in (
            lambda: owner.create_chunk(UNIT),
            lambda: CpuDriver(capacity=64 << 20).create_chunk(UNIT),
            lambda: owner.export_chunk(chunk),
            lambda: other.import_chunk(0, UNIT),
        ):
            with pytest.raises(DriverError, match="ulimit -n"):
                call()
    owner.check()


def test_a_chunk_does_not_come_back_to_its_own_cuda_driver():
    """CUDA gives one handle twice then, and counts; the book does not."""
    fake = FakeCuda(capacity=64 << 20)
    owner = CudaDriver(0, Bindings(fake, "13.4.4"))
    owner.share_chunks()
    chunk = owner.create_chunk(UNIT)
    released = []
    fake.cuMemImportFromShareableHandle = lambda *_: (fake.CUresult.CUDA_SUCCESS, chunk)
    fake.cuMemRelease = lambda handle: (released.append(handle), (fake.CUresult.CUDA_SUCCESS,))[1]
    with pytest.raises(DriverError, match="own"):
        owner.import_chunk(0, UNIT)
    assert released == [chunk]
    owner.check()


def test_devices_that_cannot_share_say_so():
    model = ModelDriver(64 << 20)
    for call in (model.share_chunks, lambda: model.import_chunk(0, UNIT)):
        with pytest.raises(UnsupportedError, match="no memory"):
            call()
    fake = FakeCuda(capacity=64 << 20)
    driver = CudaDriver(0, Bindings(fake, "13.4.4"))
    fake.virtual = False
    with pytest.raises(UnsupportedError, match="shareable=True"):
        driver.share_chunks()
