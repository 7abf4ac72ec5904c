"""PyTorch on a SmartPool: in processes of their own where it is the allocator, here where it is not."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

import smartpool
import smartpool.interop.torch as interop
from smartpool.driver import open_driver
from smartpool.errors import AllocatorError, DeviceNotFoundError, DriverNotInstalledError

torch = pytest.importorskip("torch")
try:
    open_driver("cuda:0").close()
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(smartpool.__file__).parents[1]
MiB = 1 << 20


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"PYTHONPATH": path} | environment,
        check=False,
    )


def test_as_the_allocator_of_a_process():
    """Everything in `own_process/torch_installed.py`."""
    file = Path(__file__).parent / "own_process" / "torch_installed.py"
    done = run(
        *("-m", "pytest", "-q", "-rA", "--durations=8", "-p", "no:cacheprovider"),
        *("-o", "addopts=--import-mode=importlib", "--rootdir", str(ROOT), str(file)),
        SMARTPOOL_OWN_PROCESS="1",
    )
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-6000:]


@pytest.mark.parametrize("where", ["globals", "everywhere"])
def test_nothing_is_said_at_the_end_of_the_interpreter(where):
    """Models, optimisers, graphs and streams are alive in globals; PyTorch frees them after the modules."""
    program = """
import sys, threading, torch
import smartpool, smartpool.interop.torch
pool = smartpool.SmartPool("cuda:0")
smartpool.interop.torch.install(pool)
model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(100)]).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(2):
    out = model(torch.randn(64, 256, device="cuda"))
    out.square().mean().backward()
    optimizer.step()
convolved = torch.nn.Conv2d(3, 8, 3).cuda()(torch.randn(2, 3, 32, 32, device="cuda"))
"""
    if where == "everywhere":
        program += """
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = out * 2
graph.replay()
sys.held_by_a_builtin_module = [torch.ones(1000, device="cuda"), model]

class Holder:
    in_class = torch.ones(77, device="cuda")

    def __init__(self):
        self.cycle, self.tensor = self, torch.ones(5, device="cuda")

Holder()
side = torch.cuda.Stream()
with torch.cuda.stream(side):
    on_the_side = torch.ones(1 << 20, device="cuda")
del pool, smartpool, sys.modules["smartpool.interop.torch"], sys.modules["smartpool"]
"""
    done = run("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_cuda_that_was_initialised_already():
    torch.cuda.init()
    torch.ones(1, device="cuda")
    with smartpool.SmartPool("cuda:0") as pool:
        with pytest.raises(AllocatorError, match="not to have used CUDA yet"):
            interop.install(pool)
        pool.check()
        assert pool.managers[0].driver.held()["chunks"] == 0
    assert torch.cuda.memory_allocated() >= 0  # its own allocator goes on


def test_a_mem_pool():
    with smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(max_bytes=1 << 30)) as pool:
        manager = pool.managers[0]
        made = interop.mem_pool(pool)
        with torch.cuda.use_mem_pool(made):
            tensor = torch.full((3 * MiB,), 7, dtype=torch.uint8, device="cuda")
        blocks = manager.live_blocks()
        inside = [base for base, size in blocks.items() if base <= tensor.data_ptr() < base + size]
        assert len(inside) == 1
        assert bool((tensor == 7).all())
        assert torch.cuda.memory_allocated() >= 3 * MiB  # PyTorch's statistics work
        with torch.cuda.use_mem_pool(made), pytest.raises(torch.OutOfMemoryError):
            torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
        assert float(torch.ones(10, device="cuda").sum()) == 10
        del tensor
        del made
        gc.collect()
        torch.cuda.empty_cache()
        pool.check()
