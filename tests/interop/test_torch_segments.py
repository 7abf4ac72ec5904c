"""A `MemPool` over a pool: segments idle in PyTorch's allocator, and come back when they should."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
from fake_torch import FakeTorch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import smartpool.interop.torch as interop

MiB = 1 << 20


@pytest.fixture
def torch(monkeypatch):
    fake = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(interop, "_installation", None)
    yield fake
    gc.collect()
    assert not hasattr(fake.caching, "crashed"), fake.caching.crashed


@pytest.fixture
def caching(torch):
    return torch.caching


@pytest.fixture
def pool(open_pool):
    pool = open_pool(max_bytes="64MiB")
    yield pool
    pool.check()


def live(pool):
    return pool.managers[0].live_bytes


def test_segments_are_the_pools(torch, caching, pool):
    mine = interop.mem_pool(pool, no_split=True)
    assert isinstance(mine, torch.cuda.MemPool)
    assert mine.use_count() == 1
    with caching.use(mine):
        address = caching.malloc(1000)
        assert mine.use_count() == 2
    assert pool.managers[0].live_blocks() == {address: 2 * MiB}
    caching.free(address)
    assert live(pool) == 2 * MiB  # it idles in PyTorch
    assert torch.allocator is None  # and PyTorch's own allocator is in place
    assert mine.allocator is not None
    del mine
    gc.collect()
    assert live(pool) == 0


def test_empty_cache_gives_idle_segments_back(torch, caching, pool):
    mine = interop.mem_pool(pool)
    for _ in range(5):
        with caching.use(mine):
            held = [caching.malloc(6 * MiB) for _ in range(5)]
        kept = held.pop()
        for address in held:
            caching.free(address)
        torch.cuda.empty_cache()
        assert pool.managers[0].live_blocks() == {kept: 6 * MiB}
        caching.free(kept)
        torch.cuda.empty_cache()
        assert live(pool) == 0
    assert len(caching.pools) <= 2  # the one in use, and that of the object itself


def test_empty_cache_inside_and_with_nothing_to_give(torch, caching, pool):
    mine = interop.mem_pool(pool)
    before = mine.id
    torch.cuda.empty_cache()
    assert mine.id == before  # nothing to retire
    with caching.use(mine):
        address = caching.malloc(MiB)
        torch.cuda.empty_cache()
        assert mine.id == before  # somebody is inside
        caching.free(address)
        assert caching.malloc(MiB) == address
    caching.free(address)
    torch.cuda.empty_cache()
    assert mine.id != before


def test_a_request_for_more_than_what_idles(torch, caching, pool):
    mine = interop.mem_pool(pool)
    with caching.use(mine):
        first = caching.malloc(48 * MiB)
        caching.free(first)
        second = caching.malloc(56 * MiB)
        small = caching.malloc(1000)
        assert sorted(pool.managers[0].live_blocks().values()) == [2 * MiB, 56 * MiB]
        caching.free(second)
        third = caching.malloc(60 * MiB)
        caching.free(third)
        caching.free(small)
    torch.cuda.empty_cache()
    torch.cuda.empty_cache()
    assert live(pool) == 0
    assert mine.use_count() == 1
    with caching.use(mine):
        caching.free(caching.malloc(MiB))


def test_a_request_that_no_letting_go_can_serve(torch, caching, pool):
    mine = interop.mem_pool(pool)
    with caching.use(mine):
        kept = caching.malloc(40 * MiB)
        for _ in range(3):
            with pytest.raises(torch.OutOfMemoryError):
                caching.malloc(30 * MiB)
        caching.free(kept)
        caching.free(caching.malloc(60 * MiB))
    with pytest.raises(torch.OutOfMemoryError), caching.use(mine):
        caching.malloc(1 << 40)


def test_uses_that_keep_a_pool_where_it_is(torch, caching, pool):
    """Another thread is inside, too: nothing can be retired, and PyTorch raises its own error."""
    mine = interop.mem_pool(pool)
    inside, leave = threading.Event(), threading.Event()
    with caching.use(mine):
        caching.free(caching.malloc(40 * MiB))
        caching.pools[mine.id].use_count += 1  # a graph that shares it
        with pytest.raises(torch.OutOfMemoryError):
            caching.malloc(50 * MiB)
        caching.pools[mine.id].use_count -= 1
        caching.free(caching.malloc(50 * MiB))
    other = interop.mem_pool(pool)

    def stay():
        with caching.use(other):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(60)
    with caching.use(mine):  # another pool in use elsewhere is none of ours
        caching.free(caching.malloc(60 * MiB))
    leave.set()
    thread.join()


def test_use_on_oom_leaves_all_to_pytorch(torch, caching, pool):
    mine = interop.mem_pool(pool, use_on_oom=True)
    before = mine.id
    with caching.use(mine):
        caching.free(caching.malloc(40 * MiB))
    torch.cuda.empty_cache()
    assert mine.id == before
    assert live(pool) == 40 * MiB


def test_pytorchs_own_empty_cache_is_called_once(torch, caching, pool):
    first, second = interop.mem_pool(pool), interop.mem_pool(pool)
    before = caching.emptied
    torch.cuda.empty_cache()
    assert caching.emptied == before + 1
    del first, second


def test_what_is_no_lack_of_memory_is_told_and_no_memory(torch, caching, pool, monkeypatch):
    mine = interop.mem_pool(pool)

    def fail(*_):
        raise ZeroDivisionError("a bug")

    def request():
        try:
            caching.malloc(MiB)
        finally:
            for _ in range(1000):  # the error is raised at one of these instructions at the latest
                pass

    with caching.use(mine):
        for name in ("_search", "_refill"):
            monkeypatch.setattr(pool.managers[0], name, fail)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            request()
        monkeypatch.undo()
        caching.free(caching.malloc(MiB))


def make_machine(open_pool):
    class Machine(RuleBasedStateMachine):
        """Tensors come and go; no segment is lost, shared or left behind, and PyTorch asserts nothing."""

        def __init__(self):
            super().__init__()
            self.torch = FakeTorch()
            self.before = sys.modules.get("torch")
            sys.modules["torch"] = self.torch
            self.pool = open_pool(max_bytes="32MiB")
            self.mine = interop.mem_pool(self.pool)
            self.inside = None
            self.live = set()

        def teardown(self):
            if self.inside:
                self.leave()
            for address in self.live:
                self.torch.caching.free(address)
            self.torch.cuda.empty_cache()
            del self.mine
            gc.collect()
            self.torch.cuda.empty_cache()
            assert not hasattr(self.torch.caching, "crashed")
            assert self.pool.managers[0].live_bytes == 0
            self.pool.close()
            sys.modules.pop("torch")
            if self.before is not None:
                sys.modules["torch"] = self.before

        @precondition(lambda self: not self.inside)
        @rule()
        def enter(self):
            self.inside = self.torch.caching.use(self.mine)
            self.inside.__enter__()

        @precondition(lambda self: self.inside)
        @rule()
        def leave(self):
            self.inside.__exit__(None, None, None)
            self.inside = None

        @precondition(lambda self: self.inside)
        @rule(size=st.integers(1, 14))
        def allocate(self, size):
            used = sum(-(-nbytes // (2 * MiB)) for nbytes in self.sizes.values())
            try:
                address = self.torch.caching.malloc(size * 2 * MiB)
            except self.torch.OutOfMemoryError:
                assert used + size > 12, "there was room, but for idle segments"
                return
            assert address not in self.live
            self.live.add(address)

        @property
        def sizes(self):
            pools = self.torch.caching.pools.values()
            blocks = {address: block[0] for pool in pools for address, block in pool.blocks.items()}
            return {address: blocks[address] for address in self.live}

        @precondition(lambda self: self.live)
        @rule(data=st.data())
        def free(self, data):
            address = data.draw(st.sampled_from(sorted(self.live)))
            self.live.remove(address)
            self.torch.caching.free(address)

        @rule()
        def empty(self):
            self.torch.cuda.empty_cache()
            if not self.inside:
                assert set(self.pool.managers[0].live_blocks()) == self.live

        @invariant()
        def sound(self):
            assert self.live <= set(self.pool.managers[0].live_blocks())
            self.pool.check()

    return Machine


def test_tensors_come_and_go(open_pool):
    machine = make_machine(open_pool).TestCase
    machine.settings = settings(
        max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine("runTest").runTest()
