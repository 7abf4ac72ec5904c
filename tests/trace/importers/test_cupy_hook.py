from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from smartpool.errors import (
    DriverNotInstalledError,
)
from smartpool.trace import (
    CupyMemoryHook,
    Recorder,
)


class TestCupyMemoryHook:
    """CuPy's protocol as its documentation gives it; `tests/gpu/test_cupy_hook.py` asks CuPy itself."""

    @pytest.fixture
    def cuda(self, monkeypatch):
        class MemoryHook:
            name = "MemoryHook"

            def __init_subclass__(cls):
                known = {
                    f"{what}_{when}process"
                    for what in ("alloc", "malloc", "free")
                    for when in ("pre", "post")
                }
                assert {name for name in vars(cls) if name.endswith("process")} <= known

            def malloc_preprocess(self, **event):
                pass

            def free_postprocess(self, **event):
                pass

        cuda = SimpleNamespace(MemoryHook=MemoryHook, stream=0)
        cuda.get_current_stream = lambda: SimpleNamespace(ptr=cuda.stream)
        module = ModuleType("cupy")
        module.cuda = cuda
        monkeypatch.setitem(sys.modules, "cupy", module)
        return cuda

    @staticmethod
    def malloc(hook, pointer, size, device=0):
        event = {"device_id": device, "size": size, "mem_size": size + 511 & -512}
        hook.malloc_preprocess(**event)
        hook.malloc_postprocess(**event, mem_ptr=pointer, pmem_id=id(event) if pointer else 0)

    @staticmethod
    def free(hook, pointer, size, device=0):
        event = {"device_id": device, "mem_size": size + 511 & -512, "mem_ptr": pointer, "pmem_id": 1}
        hook.free_preprocess(**event)
        hook.free_postprocess(**event)

    def test_records_what_was_asked_for(self, cuda):
        recorder = Recorder()
        hook = CupyMemoryHook(recorder)
        assert isinstance(hook, cuda.MemoryHook)
        assert hook.name != cuda.MemoryHook.name
        self.malloc(hook, 0x1000, 100)
        cuda.stream = 0x55
        self.malloc(hook, 0x2000, 200)
        self.malloc(hook, 0, 10**15)  # failed
        self.free(hook, 0, 0)  # of an array of no bytes
        self.free(hook, 0x1000, 100)
        trace = recorder.trace()
        assert (trace.op.tolist(), trace.size.tolist()) == ([0, 0, 1], [100, 200, 100])
        assert trace.stream.tolist() == [0, 1, 0]  # freed to the stream of the allocation
        assert trace.meta["settled"] == {}

    def test_one_device_of_several(self, cuda):
        recorder = Recorder()
        hook = CupyMemoryHook(recorder, device=1)
        self.malloc(hook, 0x1000, 100, device=0)
        self.malloc(hook, 0x2000, 200, device=1)
        self.free(hook, 0x1000, 100, device=0)
        assert recorder.trace().size.tolist() == [200]

    def test_without_cupy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(DriverNotInstalledError, match="expected CuPy to be installed"):
            CupyMemoryHook(Recorder())

    def test_cupy_is_not_imported_before(self):
        source = Path(sys.modules[CupyMemoryHook.__module__].__file__).read_text()
        assert not re.search(r"^(import|from) cupy", source, re.MULTILINE)
