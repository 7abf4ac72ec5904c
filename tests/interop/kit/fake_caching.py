"""PyTorch's own allocator as far as pools of it go: who uses one, when it lets go, and what it asserts.

One device, one kind of segment of at least 2 MiB, no events. What would end PyTorch's process, or go on
with memory that is gone, is a `BaseException` here, so that no handler of errors hides it.
"""

import threading
from contextlib import contextmanager

SEGMENT, SMALL = 2 << 20, 1 << 20


class Crash(BaseException):
    pass


class PrivatePool:
    def __init__(self, allocator):
        self.allocator, self.use_count, self.gone = allocator, 1, False
        self.blocks = {}  # address -> [size, whether a tensor has it, whether it is for small ones]


class Caching:
    def __init__(self, oom):
        self.oom = oom
        self.pools, self.freeable, self.underway = {}, {}, []
        self.numbers = iter(range(1, 1 << 30))
        self.lock = threading.RLock()
        self.emptied = 0

    # --- pools ---

    def create(self, name, allocator):
        self.pools[name] = PrivatePool(allocator)

    def begin(self, device, name):
        if name not in self.pools:
            self.create(name, None)  # PyTorch's own memory from then on
        elif not self.pools[name].use_count:
            raise RuntimeError("INTERNAL ASSERT FAILED: use_count > 0")
        else:
            self.pools[name].use_count += 1
        if any(known == name for known, _ in self.underway):
            raise RuntimeError("already recording to mempool_id")
        self.underway.append((name, threading.get_ident()))

    def end(self, device, name):
        self.underway.remove(next(item for item in self.underway if item[0] == name))

    def release(self, device, name):
        pool = self.pools.get(name)
        if pool is None or not pool.use_count:
            raise Crash("a use was released that there is not")
        pool.use_count -= 1
        if not pool.use_count:
            self.freeable[name] = pool

    def empty(self, name=None):
        with self.lock:
            self.emptied += 1
            if name in self.freeable and self.underway:
                raise Crash("INTERNAL ASSERT FAILED: captures_underway.empty(), in a destructor")
            for known, pool in list(self.freeable.items()):
                if name not in (None, known):
                    continue
                for address, (_, taken, _) in list(pool.blocks.items()):
                    if not taken:
                        pool.allocator.raw_delete(address)
                        del pool.blocks[address]
                if not pool.blocks:
                    pool.gone = True
                    del self.pools[known], self.freeable[known]

    # --- memory ---

    def malloc(self, size):
        with self.lock:
            mine = [name for name, thread in self.underway if thread == threading.get_ident()]
            pool = self.pools[mine[-1]]
            for address, block in sorted(pool.blocks.items()):
                if not block[1] and block[0] >= size and block[2] == (size <= SMALL):
                    block[1] = True
                    return address
            segment = -(-size // SEGMENT) * SEGMENT
            if pool.allocator is None:
                raise Crash("memory of PyTorch's own, in a pool of ours")
            address = pool.allocator.raw_alloc(segment)
            if pool.gone:
                raise Crash("the pool was deleted in the middle of a request for it")
            if address is None:
                raise self.oom(f"CUDA out of memory. Tried to allocate {size} bytes")
            pool.blocks[address] = [segment, True, size <= SMALL]
            return address

    def free(self, address):
        with self.lock:
            (pool,) = (pool for pool in self.pools.values() if address in pool.blocks)
            pool.blocks[address][1] = False

    @contextmanager
    def use(self, pool):
        """As `torch.cuda.use_mem_pool`, which asks for the pool's name three times."""
        self.begin(0, pool.id)
        try:
            yield
        finally:
            self.end(0, pool.id)
            self.release(0, pool.id)


def mem_pool_class(caching):
    class MemPool:
        def __init__(self, allocator=None, **options):
            self._allocator, self.options = allocator, options
            self._name = 0, next(caching.numbers)
            caching.create(self._name, allocator)

        def __del__(self):
            try:
                caching.release(0, self._name)
                caching.empty(self._name)
            except Crash as crash:
                caching.crashed = crash

        @property
        def id(self):
            return self._name

        @property
        def allocator(self):
            return self._allocator

        def use_count(self):
            return caching.pools[self._name].use_count

    return MemPool
