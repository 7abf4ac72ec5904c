"""Bad input of every kind: one class each, a message that helps, and a pool that is none the worse."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import smartpool
from smartpool import MiB, SmartPool, errors
from smartpool.trace import Trace

CAPACITY = 64 * MiB


class Bench:
    """A pool with something live and something cached, and whatever bad input needs."""

    def __init__(self, folder):
        self.folder = folder
        self.pool = SmartPool(f"model:{CAPACITY // MiB}MiB")
        self.held = self.pool.malloc(20 * MiB)
        self.freed = self.pool.malloc(5000)
        self.pool.free(self.freed)
        self.pool.free(self.pool.malloc(1))  # a cached size that True would hit

    def closed(self):
        pool = SmartPool("model:1GiB")
        pool.close()
        return pool

    def truncated(self):
        path = self.folder / "cut.npz"
        Trace.from_columns("x", op=[0, 1], id=[0, 0], size=[8, 8]).save(path)
        path.write_bytes(path.read_bytes()[:-30])
        return path

    def freed_number(self):
        _, number = self.pool.allocate_memory(smartpool.AllocationRequest(size=100))
        self.pool.deallocate_memory(number)
        return number


def driver_free(bench):
    """A device with no driver installed; where there is one, a device that does not exist."""
    return SmartPool("cuda:99")


# What is done, the class of its error, and what the message says beside "expected": what came, what to do.
CASES = {
    "a negative size": (lambda b: b.pool.malloc(-1), errors.InvalidSizeError, ["got -1", "ask for"]),
    "a size that is no integer": (
        lambda b: b.pool.malloc(512.0),
        errors.InvalidSizeError,
        ["got 512.0", "int()"],
    ),
    "a size that is text": (
        lambda b: b.pool.allocate("1MiB"),
        errors.InvalidSizeError,
        ["'1MiB'", "parse_size"],
    ),
    "a size that is a boolean": (
        lambda b: b.pool.malloc(True),
        errors.InvalidSizeError,
        ["got True", "int()"],
    ),
    "a size larger than the device": (
        lambda b: b.pool.malloc(CAPACITY + 1),
        errors.RequestTooLargeError,
        [f"Tried to allocate 64 MiB ({CAPACITY + 1} bytes)", "ask for at most 64 MiB"],
    ),
    "more than is free": (
        lambda b: b.pool.malloc(50 * MiB),
        errors.OutOfMemoryError,
        ["50 MiB", "20 MiB live", "largest free range", "fragmentation", "free what is not needed"],
    ),
    "a closed pool": (
        lambda b: b.closed().malloc(100),
        errors.PoolClosedError,
        ["was closed", "make another"],
    ),
    "a closed pool's buffer": (lambda b: b.closed().empty(3), errors.PoolClosedError, ["was closed"]),
    "a double free": (lambda b: b.pool.free(b.freed), errors.DoubleFreeError, ["free already", "once"]),
    "a double free by number": (
        lambda b: b.pool.deallocate_memory(b.freed_number()),
        errors.DoubleFreeError,
        ["freed already", "once"],
    ),
    "a pointer that is not ours": (
        lambda b: b.pool.free(12345 * 512),
        errors.UnknownPointerError,
        [hex(12345 * 512), "free it with"],
    ),
    "a pointer into a block": (
        lambda b: b.pool.free(b.held + 512),
        errors.UnknownPointerError,
        ["got 0x", "the address that it returned"],
    ),
    "a pointer that is no integer": (
        lambda b: b.pool.free("0x1000"),
        errors.UnknownPointerError,
        ["'0x1000'", "of type str", "Buffer.free"],
    ),
    "a number that is not ours": (
        lambda b: b.pool.deallocate_memory(999),
        errors.UnknownPointerError,
        ["got 999", "allocation_id"],
    ),
    "a stream of nobody": (
        lambda b: b.pool.malloc(8, stream=77),
        errors.StreamError,
        ["got 77", "create_stream"],
    ),
    "an alignment that is no power of two": (
        lambda b: b.pool.empty(8, alignment=48),
        errors.InvalidRequestError,
        ["alignment", "power of two", "got 48"],
    ),
    "a device that nobody knows": (
        lambda _: SmartPool("tpu:0"),
        errors.DeviceNotFoundError,
        ["'tpu:0'", "use 'cpu'"],
    ),
    "a device number of another pool": (
        lambda b: b.pool.empty(8, device_id=3),
        errors.DeviceNotFoundError,
        ["got 3", "name the device"],
    ),
    "a device without a driver": (
        driver_free,
        (errors.DriverNotInstalledError, errors.DeviceNotFoundError),
        ["use"],
    ),
    "a setting that is wrong": (
        lambda _: SmartPool("cpu", smartpool.SmartPoolConfig(max_bytes="0")),
        errors.ConfigurationError,
        ["max_bytes"],
    ),
    "a limit below one chunk": (
        lambda _: SmartPool("model:1GiB", smartpool.SmartPoolConfig(max_bytes="1MiB")),
        errors.ConfigurationError,
        ["max_bytes", "at least 2 MiB", "got '1MiB'"],
    ),
    "a truncated trace": (lambda b: Trace.load(b.truncated()), errors.TraceFormatError, ["cut.npz"]),
    "a trace that frees what was never allocated": (
        lambda _: Trace.from_columns("x", op=[0, 1], id=[0, 5], size=[8, 8]),
        errors.TraceInconsistentError,
        ["row 1", "frees allocation 5", "never made"],
    ),
}


def test_bad_input_gets_one_clear_error_and_leaves_the_pool_whole(tmp_path):
    """All of it on one pool, one after the other: the next case finds what the last one left."""
    bench = Bench(tmp_path)
    pool = bench.pool
    for name, (act, expected, said) in CASES.items():
        before = pool.managers[0].live_blocks()
        with pytest.raises(errors.SmartPoolError) as caught:
            act(bench)
        kinds = expected if isinstance(expected, tuple) else (expected,)
        assert type(caught.value) in kinds, (name, caught.value)
        message = str(caught.value)
        for part in said:
            assert part in message, (name, part, message)
        pool.check()
        assert pool.managers[0].live_blocks() == before, name
        rest = pool.malloc(CAPACITY - 20 * MiB)  # all that remains can still be had
        pool.free(rest)
    pool.free(bench.held)
    pool.trim(wait=True)
    assert pool.managers[0].reserved_bytes == 0
    pool.close()


def test_every_class_is_public_has_a_cause_and_one_root():
    assert errors.__all__ == sorted(errors.__all__)
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, Exception):
            assert name in errors.__all__
            assert issubclass(value, errors.SmartPoolError)
            assert value.__doc__
            assert getattr(smartpool, name) is value


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("OutOfMemoryError", MemoryError),
        ("DriverOutOfMemoryError", MemoryError),
        ("InvalidSizeError", ValueError),
        ("DoubleFreeError", ValueError),
        ("PoolClosedError", RuntimeError),
        ("ReentrantCallError", RuntimeError),
        ("DeviceNotFoundError", LookupError),
        ("UnsupportedError", NotImplementedError),
        ("DLPackError", BufferError),
        ("MissingPackageError", ImportError),
    ],
)
def test_code_that_does_not_know_us_catches_the_right_thing(ours, theirs):
    assert issubclass(getattr(errors, ours), theirs)


def test_a_driver_error_tells_the_call():
    error = errors.DriverError("map_chunk", "EBUSY", {"address": 1 << 44, "chunk": 7}, advice="unmap first")
    assert (error.call, error.code, error.arguments) == (
        "map_chunk",
        "EBUSY",
        {"address": 1 << 44, "chunk": 7},
    )
    assert str(error) == "map_chunk(address=0x100000000000, chunk=7) failed: EBUSY; unmap first"


def test_numpy_integers_are_sizes_and_pointers():
    with SmartPool("model:1GiB") as pool:
        pointer = pool.malloc(np.int32(5000))
        pool.free(np.uint64(pointer))
        assert pool.malloc(5000) == pointer
