"""The kit that ships, on a real device: SmartPool, and the allocators of others that are installed."""

from __future__ import annotations

import pytest
from stream_toys import STREAM_PLANTED

from smartpool import SmartPoolConfig
from smartpool.driver import open_driver
from smartpool.errors import SmartPoolError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.testing import Invariant, ViolationError, check_allocator, check_stream_order
from smartpool.units import MiB

try:
    KEEPER = open_driver("cuda:0")  # keeps the context between programs
except SmartPoolError as error:
    pytest.skip(str(error), allow_module_level=True)

CAPACITY = 64 * MiB
BUDGET = {"examples": 60, "seconds": 40.0}
UNDEFINED = {"bad_frees": "undefined", "bad_sizes": "undefined", "zero_size": "undefined"}


# ---------------------------------------------------------------------- SmartPool


def smartpool_on(policy):
    config = SmartPoolConfig(policy=policy, max_bytes=CAPACITY)
    return lambda driver: AdvancedMemoryPoolManager(driver, config)


SMARTPOOL = {
    "driver": "cuda:0",
    "capacity": CAPACITY,
    "alignment": 512,
    "zero_size": "distinct",
    "accounting": lambda pool: {
        "live_bytes": pool.live_bytes,
        "live_blocks": pool.live_blocks(),
        "reserved_bytes": pool.reserved_bytes,
        "peak_reserved_bytes": pool.peak_reserved_bytes,
    },
    "check": "check",
    "trim": lambda pool: pool.trim(wait=True),
    "close": "close",
    "upkeep": {"flush": "flush", "trim": "trim"},
    "malloc_aligned": lambda pool, nbytes, alignment, stream=None: pool.malloc_aligned(
        nbytes, alignment, stream
    ),
    "record_stream": lambda pool, pointer, stream: pool.record_stream(pointer, stream),
}


@pytest.mark.parametrize("policy", ["balanced", "tight", "fast"])
def test_smartpool(policy):
    report = check_allocator(smartpool_on(policy), streams=2, **SMARTPOOL, **BUDGET)
    assert set(report.unchecked) <= {Invariant.SERVED, Invariant.STREAM_ORDER, Invariant.ZERO_SIZE}


@pytest.mark.parametrize("by", ["events", "bytes"])
def test_smartpool_on_streams(by):
    report = check_stream_order(smartpool_on("balanced"), by=by, **SMARTPOOL, **BUDGET)
    assert report.checked[Invariant.STREAM_ORDER] > 100


def test_a_forgotten_wait_shows_on_the_device_too():
    """What the kit says of others means something: here it does find the race."""
    with pytest.raises(ViolationError) as caught:
        check_stream_order(
            STREAM_PLANTED[0],
            driver="cuda:0",
            by="bytes",
            capacity=4096,
            alignment=512,
            zero_size="distinct",
            record_stream="record_stream",
            close="close",
        )
    assert caught.value.invariant is Invariant.STREAM_ORDER


# ---------------------------------------------------------------------- CuPy


class CudaStream:
    """A handle as an object that says which stream it is."""

    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


def cupy_pool(cupy):
    def make(driver):
        pool = cupy.cuda.MemoryPool()
        pool.set_limit(size=CAPACITY)

        def malloc(nbytes, stream=0):
            with cupy.cuda.Stream.from_external(CudaStream(stream)):
                return pool.malloc(nbytes)

        made = malloc, lambda block: block.mem.free()
        pools[id(malloc)] = pool
        return made

    pools = {}

    def pool_of(made):
        return pools[id(made[0])]

    return make, {
        "driver": "cuda:0",
        "capacity": CAPACITY,
        "alignment": 512,
        "rounding": 512,
        "errors": cupy.cuda.memory.OutOfMemoryError,
        "zero_size": "undefined",
        "bad_frees": "ignored",
        "accounting": lambda made: {
            "live_bytes": pool_of(made).used_bytes(),
            "free_bytes": pool_of(made).free_bytes(),
            "reserved_bytes": pool_of(made).total_bytes(),
        },
        "trim": lambda made: pool_of(made).free_all_blocks(),
        "upkeep": {"free_all_blocks": lambda made: pool_of(made).free_all_blocks()},
        "close": lambda made: pools.pop(id(made[0])).free_all_blocks(),
    }


def test_cupy():
    factory, contract = cupy_pool(pytest.importorskip("cupy"))
    report = check_allocator(factory, streams=2, **contract, **BUDGET)
    assert report.checked[Invariant.CONTENTS] > 1000


def test_cupy_on_streams():
    factory, contract = cupy_pool(pytest.importorskip("cupy"))
    report = check_stream_order(factory, by="bytes", **contract, **BUDGET)
    assert report.checked[Invariant.STREAM_ORDER] > 100


# ---------------------------------------------------------------------- RMM


class StreamOrderedPool:
    """RMM's pool as its C++ callers use it: a free names the stream, by default that of the request."""

    def __init__(self, rmm):
        upstream = rmm.mr.CudaMemoryResource()
        self._pool = rmm.mr.PoolMemoryResource(
            upstream, initial_pool_size=CAPACITY, maximum_pool_size=CAPACITY
        )
        self._stream_of = rmm.pylibrmm.stream.Stream
        self._live = {}

    def malloc(self, nbytes, stream=0):
        pointer = self._pool.allocate(nbytes, stream=self._stream_of(CudaStream(stream)))
        self._live[pointer] = nbytes, stream
        return pointer

    def free(self, pointer, stream=None):
        nbytes, own = self._live.pop(pointer)
        self._pool.deallocate(
            pointer, nbytes, stream=self._stream_of(CudaStream(own if stream is None else stream))
        )


def rmm_pool(rmm):
    return (lambda driver: StreamOrderedPool(rmm)), {
        "driver": "cuda:0",
        "capacity": CAPACITY,
        "alignment": 256,
        **UNDEFINED,
    }


def test_rmm():
    factory, contract = rmm_pool(pytest.importorskip("rmm"))
    report = check_allocator(factory, streams=2, **contract, **BUDGET)
    assert report.checked[Invariant.CONTENTS] > 1000


def test_rmm_on_streams():
    factory, contract = rmm_pool(pytest.importorskip("rmm"))
    report = check_stream_order(factory, by="bytes", **contract, **BUDGET)
    assert report.checked[Invariant.STREAM_ORDER] > 100


# ---------------------------------------------------------------------- PyTorch


def torch_pool(torch):
    """The raw calls of the caching allocator. There is one for the process, with what it cached before: so
    live bytes are counted from here, and reserved ones, which no program begins at zero, are not."""
    torch.cuda.init()
    torch.cuda.empty_cache()

    def live():
        return torch.cuda.memory_stats().get("requested_bytes.all.current", 0)

    before = live()

    def malloc(nbytes, stream=0):
        return torch.cuda.caching_allocator_alloc(nbytes, 0, stream)

    return (lambda driver: (malloc, torch.cuda.caching_allocator_delete)), {
        "driver": "cuda:0",
        "max_bytes": CAPACITY,
        "alignment": 512,
        "errors": (torch.OutOfMemoryError, RuntimeError),
        "zero_size": "undefined",
        "bad_sizes": "undefined",
        "accounting": lambda pair: {"live_bytes": live() - before},
        "trim": lambda pair: torch.cuda.empty_cache(),
        "upkeep": {"empty_cache": lambda pair: torch.cuda.empty_cache()},
    }


def test_torch():
    factory, contract = torch_pool(pytest.importorskip("torch"))
    report = check_allocator(factory, streams=2, **contract, **BUDGET)
    assert report.checked[Invariant.CONTENTS] > 1000


def test_torch_on_streams():
    factory, contract = torch_pool(pytest.importorskip("torch"))
    report = check_stream_order(factory, by="bytes", **contract, **BUDGET)
    assert report.checked[Invariant.STREAM_ORDER] > 100
