"""What `smartpool.interop.torch` uses of PyTorch, with PyTorch's habits.

Addresses are called as C code, through `ctypes`; the size and the stream of a request are kept and
given back with the free; the allocator cannot be changed once it was used; hooks take addresses. What
an allocator throws becomes PyTorch's own error in Python.
"""

import ctypes
import types

from fake_caching import Caching, mem_pool_class
from fake_libc10 import FakeLibc10

Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
RecordStream = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
Reset = ctypes.CFUNCTYPE(None)
Fraction = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.c_int)
Pool = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)
PoolFiltered = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p)


class Allocator:
    def __init__(self, allocate, free):
        assert type(allocate) is int
        assert type(free) is int
        self.allocate_address = allocate
        self._allocate, self._free = Allocate(allocate), Free(free)
        self._of = {}

    def raw_alloc(self, size, device=0, stream=None):
        pointer = self._allocate(size, device, stream)
        thrown = FakeTorch.libc10.take()
        if thrown is not None:
            name, message = thrown
            raise (FakeTorch.OutOfMemoryError if name == "OutOfMemoryError" else RuntimeError)(message)
        self._of[pointer] = (size, device, stream)
        return pointer

    def raw_delete(self, pointer):
        self._free(pointer, *self._of.pop(pointer))

    def set_record_stream_fn(self, address):
        self.record_stream = RecordStream(address)

    def set_reset_fn(self, address):
        self.empty_cache = Reset(address)

    def set_memory_fraction_fn(self, address):
        self.set_fraction = Fraction(address)

    def set_begin_allocate_to_pool(self, address):
        self._begin = PoolFiltered(address)

    def set_end_allocate_to_pool_fn(self, address):
        self.end = Pool(address)

    def set_release_pool(self, address):
        self.release = Pool(address)

    def begin(self, device, first, second):
        self._begin(device, first, second, 1)


class Stream:
    """PyTorch hands its streams out in turn."""

    def __init__(self, device, priority=0):
        self.cuda_stream = 0


class FakeTorch(types.ModuleType):
    __version__ = "2.11.0+fake"
    libc10 = FakeLibc10()

    class OutOfMemoryError(RuntimeError):
        pass

    def __init__(self):
        super().__init__("torch")
        self.version = types.SimpleNamespace(cuda="13.0")
        self.initialized = False
        self.allocator = None
        self.caching = caching = Caching(self.OutOfMemoryError)
        self._C = types.SimpleNamespace(
            _cuda_customAllocator=Allocator,
            _cuda_changeCurrentAllocator=self._change,
            _cuda_emptyCache=caching.empty,
            _cuda_beginAllocateCurrentThreadToPool=caching.begin,
            _cuda_endAllocateToPool=caching.end,
            _cuda_releasePool=caching.release,
        )
        self.cuda = types.SimpleNamespace(
            is_initialized=lambda: self.initialized,
            MemPool=mem_pool_class(caching),
            Stream=Stream,
            current_device=lambda: 0,
            caching_allocator_alloc=lambda size, device: caching.malloc(size),
            caching_allocator_delete=caching.free,
            empty_cache=self._empty_cache,
        )

    def _change(self, allocator):
        if self.initialized or self.allocator is not None:
            raise RuntimeError("Can't swap an already initialized allocator")
        self.allocator = allocator

    def _empty_cache(self):
        self._C._cuda_emptyCache()  # looked up when it is called
