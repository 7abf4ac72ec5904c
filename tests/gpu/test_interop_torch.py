"""PyTorch on a SmartPool: in processes of their own where it is the allocator, here where it is not."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
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


@pytest.fixture
def eight():
    """A pool of 8 GiB with a `MemPool` on it."""
    with smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(max_bytes=8 << 30)) as pool:
        yield pool, pool.managers[0]
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        pool.check()


def make(mebibytes: int) -> torch.Tensor:
    return torch.full((mebibytes * MiB,), 3, dtype=torch.uint8, device="cuda")


def test_empty_cache_gives_the_idle_segments_of_a_mem_pool_back(eight):
    pool, manager = eight
    mine = interop.mem_pool(pool)
    allocated = torch.cuda.memory_allocated()
    for _ in range(4):
        with torch.cuda.use_mem_pool(mine):
            held = [make(60) for _ in range(5)]
            small = torch.ones(1000, device="cuda")
        assert manager.live_bytes >= 300 * MiB
        kept = held.pop()
        del held, small
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert manager.live_bytes == 60 * MiB
        assert int(kept[::MiB].sum()) == 180
        del kept
        torch.cuda.empty_cache()
        assert manager.live_bytes == 0
        assert torch.cuda.memory_allocated() == allocated
    with torch.cuda.use_mem_pool(mine):
        again = make(10)
        torch.cuda.empty_cache()  # inside: nothing happens to what is in use
        assert int(again[::MiB].sum()) == 30
    del again, mine
    gc.collect()
    torch.cuda.empty_cache()
    assert manager.live_bytes == 0


def test_a_request_for_more_than_what_idles_in_a_mem_pool(eight):
    pool, manager = eight
    mine = interop.mem_pool(pool)
    with torch.cuda.use_mem_pool(mine):
        kept = torch.ones(1000, device="cuda")
        for gibibytes in (6, 7, 5, 7):
            tensor = torch.empty(gibibytes << 30, dtype=torch.uint8, device="cuda")
            tensor[:: 1 << 20].fill_(gibibytes)
            assert manager.live_bytes >= gibibytes << 30
            assert int(tensor[0]) == int(tensor[-(1 << 20)]) == gibibytes
            del tensor
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(9 << 30, dtype=torch.uint8, device="cuda")
        assert float(kept.sum()) == 1000
        more = [make(100) for _ in range(20)]
        assert all(int(tensor[-1]) == 3 for tensor in more)
    assert mine.use_count() == 1
    del kept, more
    torch.cuda.synchronize()
    for _ in range(2):  # an anchor goes with the first
        torch.cuda.empty_cache()
    assert manager.live_bytes == 0
    with torch.cuda.use_mem_pool(mine):
        assert int(make(5)[-1]) == 3


def test_uses_on_two_threads_stay_as_they_are(eight):
    pool, manager = eight
    mine, errors = interop.mem_pool(pool), []
    inside, leave = threading.Event(), threading.Event()
    other = torch.cuda.MemPool()

    def stay() -> None:
        try:
            with torch.cuda.use_mem_pool(other):
                block = make(1)
                inside.set()
                leave.wait(60)
                assert int(block[-1]) == 3
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)
            inside.set()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(60)
    with torch.cuda.use_mem_pool(mine):
        for gibibytes in (6, 7):
            del_me = torch.empty(gibibytes << 30, dtype=torch.uint8, device="cuda")
            del_me[0] = 1
            del del_me
    leave.set()
    thread.join()
    assert not errors
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.empty_cache()
    assert manager.live_bytes == 0


def test_a_graph_in_a_mem_pool(eight):
    """PyTorch asks for segments while a stream is captured: the default stream may be waited for, not all."""
    pool, _ = eight
    mine = interop.mem_pool(pool)
    static = torch.ones(1 << 20, device="cuda")
    (static * 2 + 1).sum()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=mine.id):
        result = static * 2 + 1
    for value in (1.0, 5.0):
        static.fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert float(result[-1]) == value * 2 + 1
    del graph, result
    gc.collect()
