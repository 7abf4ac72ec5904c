"""A stand-in for `cuda.bindings.driver`: the functions that our driver uses, over the cpu device.

It keeps the habits of the real one: results are tuples that begin with a `CUresult`, calls that
need a current context fail without it, and failures can be planted by function name.
"""

import ctypes
import enum
import os
import threading

from smartpool.driver import CpuDriver
from smartpool.errors import DriverError, DriverOutOfMemoryError, StreamError

CUresult = enum.IntEnum(
    "CUresult",
    {
        "CUDA_SUCCESS": 0,
        "CUDA_ERROR_INVALID_VALUE": 1,
        "CUDA_ERROR_OUT_OF_MEMORY": 2,
        "CUDA_ERROR_NOT_INITIALIZED": 3,
        "CUDA_ERROR_NO_DEVICE": 100,
        "CUDA_ERROR_INVALID_CONTEXT": 201,
        "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED": 704,
        "CUDA_ERROR_NOT_READY": 600,
        "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
        "CUDA_ERROR_INVALID_HANDLE": 400,
    },
)
OK = CUresult.CUDA_SUCCESS


class _Handle:
    def __init__(self, value=0):
        self.value = int(value)

    def __int__(self):
        return self.value


class _Struct:
    """Any attribute is there, and is a struct."""

    def __getattr__(self, name):
        value = _Struct()
        setattr(self, name, value)
        return value


class _Names:
    """Any name is there, and is itself."""

    def __getattr__(self, name):
        return name


class FakeCuda:
    """`devices` devices of `capacity` bytes. `plant(function, code)` makes its next call fail."""

    CUresult = CUresult
    CUstream = CUevent = _Handle
    CUmemAllocationProp = CUmemAccessDesc = _Struct
    CUmemAllocationType = CUmemLocationType = CUmemAccess_flags = CUmemAllocationGranularity_flags = _Names()
    CUmemAllocationHandleType = _Names()
    CUstream_flags = CUevent_flags = CUdevice_attribute = CUstreamCaptureMode = _Names()

    class CUstreamCaptureStatus(enum.IntEnum):
        CU_STREAM_CAPTURE_STATUS_NONE = 0
        CU_STREAM_CAPTURE_STATUS_ACTIVE = 1

    def __init__(self, *, devices=1, capacity=256 << 20, version=13000, virtual=True, initial=OK):
        self.cpus = [CpuDriver(capacity=capacity) for _ in range(devices)]
        self.version = version
        self.virtual = virtual
        self.initial = initial
        self.planted = {}
        self.retained = [0] * devices
        self.made = []
        self.mode = "GLOBAL"
        self.ids = {}
        self.capture_id = 77
        self._thread = threading.local()

    def plant(self, function, code):
        self.planted[function] = code

    def __getattribute__(self, name):
        if name.startswith("cu"):
            code = self.planted.pop(name, None)
            self.made.append(name)
            if code is not None:
                return lambda *_: (code,)
        return super().__getattribute__(name)

    # --- start ---

    def cuInit(self, flags):
        return (self.initial,)

    def cuDriverGetVersion(self):
        return OK, self.version

    def cuDeviceGetCount(self):
        return OK, len(self.cpus)

    def cuDeviceGet(self, ordinal):
        return OK, ordinal

    def cuDeviceGetName(self, length, device):
        return OK, b"Fake".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute, device):
        return OK, int(self.virtual)

    def cuDevicePrimaryCtxRetain(self, device):
        self.retained[device] += 1
        return OK, _Handle(self.context(device))

    def cuDevicePrimaryCtxRelease(self, device):
        self.retained[device] -= 1
        return (OK,)

    @staticmethod
    def context(device):
        return (device + 1) << 20

    # --- contexts ---

    def _stack(self):
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        return self._thread.stack

    def _current(self):
        stack = self._stack()
        return stack[-1] if stack else 0

    def cuCtxGetCurrent(self):
        return OK, _Handle(self._current())

    def cuCtxSetCurrent(self, context):
        self._stack()[-1:] = [int(context)]
        return (OK,)

    def cuCtxPushCurrent(self, context):
        self._stack().append(int(context))
        return (OK,)

    def cuCtxPopCurrent(self):
        return OK, _Handle(self._stack().pop())

    def cuThreadExchangeStreamCaptureMode(self, mode):
        before, self.mode = self.mode, mode
        return OK, before

    def cuStreamIsCapturing(self, stream):
        return OK, self.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE

    def cuStreamGetCaptureInfo(self, stream):
        return (*self.cuStreamIsCapturing(stream), self.capture_id, None, None, None, 0)

    # --- memory ---

    def _do(self, name, *values, device=None):
        """Call the current context's device, or the one given."""
        if device is None:
            if not self._current():
                return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
            device = (self._current() >> 20) - 1
            if device >= len(self.cpus):
                return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        try:
            return OK, getattr(self.cpus[device], name)(*values)
        except DriverOutOfMemoryError:
            return (CUresult.CUDA_ERROR_OUT_OF_MEMORY,)
        except StreamError:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        except DriverError:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuMemGetInfo(self):
        code, info = self._do("memory_info")
        return code, info.free, info.total

    def cuMemAlloc(self, size):
        return self._do("allocate", size)

    def cuMemFree(self, address):
        owners = []
        for device, cpu in enumerate(self.cpus):
            with cpu._lock:  # a book is mended by whoever looks at it
                if cpu._book.touchable(address, 1):
                    owners.append(device)
        return self._do("free", address, device=owners[0] if owners else 0)[:1]

    CU_MEMHOSTALLOC_PORTABLE = 1

    def cuMemHostAlloc(self, size, flags):
        assert flags == self.CU_MEMHOSTALLOC_PORTABLE
        return self._do("allocate_host", size, device=0)

    def cuMemFreeHost(self, address):
        return self._do("free_host", address, device=0)[:1]

    def cuMemcpyDtoHAsync(self, destination, source, size, stream):
        return self._do("copy_to_host", destination, source, size, self._stream(stream))[:1]

    def cuMemcpyHtoDAsync(self, destination, source, size, stream):
        return self._do("copy_from_host", destination, source, size, self._stream(stream))[:1]

    def cuMemGetAllocationGranularity(self, properties, option):
        return OK, self.cpus[0].granularity

    def cuMemAddressReserve(self, size, alignment, address, flags):
        return self._do("reserve", size, device=0)

    def cuMemAddressFree(self, address, size):
        return self._do("unreserve", address, size, device=0)[:1]

    def cuMemCreate(self, size, properties, flags):
        if isinstance(properties.requestedHandleTypes, str):
            self.cpus[0].share_chunks()
        return self._do("create_chunk", size, device=0)

    def cuMemRelease(self, handle):
        return self._do("release_chunk", handle, device=0)[:1]

    def cuMemMap(self, address, size, offset, handle, flags):
        return self._do("map_chunk", address, handle, device=0)[:1]

    def cuMemSetAccess(self, address, size, access, count):
        assert len(access) == count
        return self._do("enable_access", address, size, device=0)[:1]

    def cuMemUnmap(self, address, size):
        return self._do("unmap", address, size, device=0)[:1]

    def cuMemExportToShareableHandle(self, handle, kind, flags):
        return self._do("export_chunk", handle, device=0)

    def cuMemImportFromShareableHandle(self, descriptor, kind):
        return self._do("import_chunk", descriptor, os.fstat(descriptor).st_size, device=0)

    # --- streams and events ---

    @staticmethod
    def _stream(stream):
        return 0 if int(stream) in (0, 1, 2) else int(stream)

    def cuStreamGetCtx(self, stream):
        for device, cpu in enumerate(self.cpus):
            if cpu._queues.knows_stream(int(stream)):
                return OK, _Handle(self.context(device))
        return (CUresult.CUDA_ERROR_INVALID_HANDLE,)

    def cuStreamGetId(self, stream):
        """Handles are not given twice here, unless a test says that one was."""
        return OK, self.ids.get(int(stream), int(stream))

    def cuStreamCreate(self, flags):
        code, *value = self._do("create_stream")
        return (code, *map(_Handle, value))

    def cuStreamDestroy(self, stream):
        return self._do("destroy_stream", int(stream), device=0)[:1]

    def cuStreamSynchronize(self, stream):
        return self._do("synchronize", self._stream(stream))[:1]

    def cuCtxSynchronize(self):
        return self._do("synchronize")[:1]

    def cuStreamWaitEvent(self, stream, event, flags):
        device = None if self._stream(stream) == 0 else 0
        return self._do("wait_event", self._stream(stream), int(event), device=device)[:1]

    def cuEventCreate(self, flags):
        code, *value = self._do("create_event")
        return (code, *map(_Handle, value))

    def cuEventDestroy(self, event):
        return self._do("destroy_event", int(event), device=0)[:1]

    def cuEventRecord(self, event, stream):
        device = None if self._stream(stream) == 0 else 0
        return self._do("record_event", int(event), self._stream(stream), device=device)[:1]

    def cuCtxRecordEvent(self, context, event):
        return self._do("record_event", int(event), 0, device=(int(context) >> 20) - 1)[:1]

    def cuEventQuery(self, event):
        code, *done = self._do("event_done", int(event), device=0)
        return (code if code or done[0] else CUresult.CUDA_ERROR_NOT_READY,)

    def cuEventSynchronize(self, event):
        return self._do("synchronize_event", int(event), device=0)[:1]

    # --- data ---

    def cuMemsetD8Async(self, address, value, size, stream):
        device = None if self._stream(stream) == 0 else 0
        return self._do("fill", address, value, size, self._stream(stream), device=device)[:1]

    def cuMemcpyDtoDAsync(self, destination, source, size, stream):
        device = None if self._stream(stream) == 0 else 0
        return self._do("copy", destination, source, size, self._stream(stream), device=device)[:1]

    def cuMemcpyDtoH(self, host, address, size):
        code, *data = self._do("read", address, size)
        if data:
            ctypes.memmove(host, data[0], size)
        return (code,)

    def cuMemcpyHtoD(self, address, host, size):
        return self._do("write", address, ctypes.string_at(host, size))[:1]
