"""What our modules use of CuPy, Numba, cuda.core and RMM, with their habits."""

import ctypes
import types
import weakref
from contextlib import contextmanager


class Stream:
    def __init__(self, handle=0):
        self.ptr = handle

    def __cuda_stream__(self):
        return 0, self.ptr


# ------------------------------------------------------------------ CuPy


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id=-1):
        assert device_id >= 0  # CuPy would ask the driver about the pointer
        self.ptr, self.size, self.device_id, self._owner = ptr, size, device_id, owner


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset


def fake_cupy():
    cupy, cuda = types.ModuleType("cupy"), types.ModuleType("cupy.cuda")
    state = types.SimpleNamespace(allocator=None, local=None, device=0, stream=Stream())
    cuda.MemoryPointer, cuda.UnownedMemory = MemoryPointer, UnownedMemory
    cuda.device = types.SimpleNamespace(get_device_id=lambda: state.device)
    cuda.get_current_stream = lambda: state.stream
    state.captured, state.ruined = set(), set()

    def is_capturing(handle):
        if handle in state.ruined:
            raise RuntimeError("the stream was capturing, but an error has invalidated the capture sequence")
        return handle in state.captured

    cuda.runtime = types.SimpleNamespace(streamIsCapturing=is_capturing)
    cuda.get_allocator = lambda: state.local or state.allocator

    def set_allocator(allocator):
        state.allocator = allocator

    @contextmanager
    def using_allocator(allocator):
        before, state.local = state.local, allocator
        yield
        state.local = before

    cuda.set_allocator, cuda.using_allocator = set_allocator, using_allocator
    cupy.cuda, cupy.state = cuda, state

    def alloc(size):
        return cuda.get_allocator()(size)

    cupy.alloc = alloc
    return cupy


# ------------------------------------------------------------------ Numba


class NumbaMemoryPointer:
    def __init__(self, context, pointer, size, finalizer):
        assert isinstance(pointer, ctypes.c_void_p)
        self.context, self.device_pointer, self.size = context, pointer, size
        self._finalizer = weakref.finalize(self, finalizer)


class HostOnlyCUDAMemoryManager:
    def __init__(self, *, context):
        self.context = context


class FakeNumbaCuda(types.ModuleType):
    MemoryPointer = NumbaMemoryPointer
    MemoryInfo = staticmethod(lambda free, total: types.SimpleNamespace(free=free, total=total))
    HostOnlyCUDAMemoryManager = HostOnlyCUDAMemoryManager

    def __init__(self):
        super().__init__("numba.cuda")
        self.plugin = None
        self.devices = {}
        driver = types.SimpleNamespace(driver=types.SimpleNamespace(devices=self.devices))
        self.cudadrv = types.SimpleNamespace(driver=driver)

    def set_memory_manager(self, plugin):
        assert plugin(context=None).interface_version == 1
        self.plugin = plugin

    def context(self, ordinal=0):
        context = types.SimpleNamespace(device=types.SimpleNamespace(id=ordinal))
        self.devices[ordinal] = types.SimpleNamespace(primary_context=context)
        context.manager = self.plugin(context=context)
        context.manager.initialize()
        return context


# ------------------------------------------------------------------ cuda.core


class Buffer:
    """Of version 1: remembers the stream of its deallocation. `older` has no such argument."""

    older = False

    @classmethod
    def from_handle(cls, ptr, size, mr=None, owner=None, **options):
        if cls.older and options:
            raise TypeError("from_handle() got an unexpected keyword argument 'stream'")
        buffer = cls()
        buffer.handle, buffer.size, buffer.memory_resource = ptr, size, mr
        buffer.stream = options.get("stream")
        return buffer

    def close(self, stream=None):
        resource, self.memory_resource = self.memory_resource, None
        if resource is not None:
            resource.deallocate(self.handle, self.size, stream=stream or self.stream)


def fake_cuda_core():
    core = types.ModuleType("cuda.core")
    core.Buffer = type("Buffer", (Buffer,), {})
    core.MemoryResource = type("MemoryResource", (), {})
    core.Device = lambda _: types.SimpleNamespace(default_stream=Stream())
    return core


# ------------------------------------------------------------------ RMM


class CallbackMemoryResource:
    def __init__(self, allocate_func, deallocate_func):
        self._allocate, self._deallocate = allocate_func, deallocate_func

    def allocate(self, nbytes, stream=None):
        return self._allocate(nbytes, stream or Stream())

    def deallocate(self, ptr, nbytes, stream=None):
        self._deallocate(ptr, nbytes, stream or Stream())


def fake_rmm_mr():
    mr = types.ModuleType("rmm.mr")
    mr.current = {0: "before", 1: "before"}
    mr.CallbackMemoryResource = CallbackMemoryResource
    mr.get_per_device_resource = mr.current.__getitem__
    mr.set_per_device_resource = mr.current.__setitem__
    return mr
