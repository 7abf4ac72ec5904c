"""PyTorch with a SmartPool as the allocator of the process, and other frameworks on the same pool.

An allocator is for good, so `tests/gpu/test_interop_torch.py` runs this file in a process of its own.
"""

from __future__ import annotations

import copy
import gc
import itertools
import os
import threading

import numpy as np
import pytest

import smartpool
import smartpool.interop.cupy as for_cupy
import smartpool.interop.numba as for_numba
import smartpool.interop.torch as interop
from smartpool.errors import AllocatorError
from smartpool.interop.cuda_core import memory_resource

if "SMARTPOOL_OWN_PROCESS" not in os.environ:
    pytest.skip("installs an allocator for good: see test_interop_torch.py", allow_module_level=True)
torch = pytest.importorskip("torch")

MiB, GiB = 1 << 20, 1 << 30

POOL = smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(max_bytes=8 * GiB))
MANAGER = POOL.managers[0]
interop.install(POOL)


@pytest.fixture(autouse=True)
def _sound():
    yield
    gc.collect()
    torch.cuda.synchronize()
    POOL.check()


def make(nbytes: int) -> object:
    return torch.empty(nbytes, dtype=torch.uint8, device="cuda")


# ------------------------------------------------------------------ tensors


def test_tensors_are_the_pools_blocks():
    tensor = make(3 * MiB + 1)
    assert MANAGER.live_blocks()[tensor.data_ptr()] == 3 * MiB + 1
    address = tensor.data_ptr()
    del tensor
    assert address not in {block["address"] for block in interop.memory_snapshot()}
    assert make(3 * MiB + 1).data_ptr() == address


def test_empty_tensors_take_nothing():
    before = MANAGER.live_bytes
    tensor = torch.empty(0, device="cuda")
    assert (tensor.data_ptr(), MANAGER.live_bytes) == (0, before)
    assert (tensor + 1).numel() == 0


def test_streams():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        tensor = make(MiB)
        assert MANAGER.stream_of(tensor.data_ptr()) == side.cuda_stream
        address = tensor.data_ptr()
        del tensor
        assert make(MiB).data_ptr() == address
    assert MANAGER.stream_of(make(5 * MiB).data_ptr()) == 0


def test_training_learns_as_on_the_host():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = torch.nn.Sequential(layer, torch.nn.Linear(64, 8))
    source, target = torch.randn(16, 24, 64), torch.randn(16, 24, 8)

    def train(device: str) -> list[float]:
        torch.manual_seed(1)
        trained = copy.deepcopy(model).to(device)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
        losses = []
        for step in range(20):
            length = 8 + step % 5 * 4
            loss = torch.nn.functional.mse_loss(
                trained(source[:, :length].to(device)), target[:, :length].to(device)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    assert train("cuda") == pytest.approx(train("cpu"), rel=1e-3)


def test_threads_on_streams_of_their_own():
    wrong = []

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for step in range(200):
                held = [
                    torch.full((1 + (seed * 7919 + step * 31 + k) % 300_000,), seed, device="cuda")
                    for k in range(4)
                ]
                if not all(bool((tensor == seed).all()) for tensor in held):
                    wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_record_stream_keeps_memory_from_the_next_owner():
    side = torch.cuda.Stream()
    for _ in range(5):
        tensor = torch.full((64 * MiB,), 3, dtype=torch.uint8, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            copy = tensor.clone()
        tensor.record_stream(side)
        del tensor
        again = torch.full((64 * MiB,), 9, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        assert bool((copy == 3).all())
        del again, copy


def test_operands_that_die_while_an_error_is_on_its_way():
    """PyTorch frees them with Python's error set: code of the interpreter must not run there."""
    for _ in range(20):
        with pytest.raises(RuntimeError):
            torch.ones(3, device="cuda") @ torch.ones(4, device="cuda")
        with pytest.raises(ZeroDivisionError):
            (torch.ones(5, device="cuda"), torch.ones(6, device="cuda"), 1 / 0)

        def fail() -> None:
            raise KeyError(torch.ones(7, device="cuda"))

        with pytest.raises(KeyError):
            torch.ones(8, device="cuda") + fail()
    assert float(torch.ones(10, device="cuda").sum()) == 10


# ------------------------------------------------------------------ statistics


def test_pytorch_refuses_its_statistics_and_ours_answer():
    tensor = make(10 * MiB)
    for function in (torch.cuda.memory_stats, torch.cuda.memory_allocated, torch.cuda.memory_snapshot):
        with pytest.raises(RuntimeError):
            function()
    stats = interop.memory_stats()
    assert stats["requested_bytes.all.current"] >= 10 * MiB
    assert stats["reserved_bytes.all.current"] >= stats["requested_bytes.all.current"]
    blocks = {block["address"]: block for block in interop.memory_snapshot()}
    assert blocks[tensor.data_ptr()]["requested_size"] == 10 * MiB


def test_empty_cache():
    del_me = make(512 * MiB)
    before = interop.memory_reserved()
    del del_me
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert interop.memory_reserved() <= before - 500 * MiB


def test_a_second_installation_is_refused():
    with smartpool.SmartPool("cuda:0") as other, pytest.raises(AllocatorError, match="no SmartPool yet"):
        interop.install(other)
    with pytest.raises(AllocatorError, match="PyTorch's own allocator"):
        interop.mem_pool(POOL)


# ------------------------------------------------------------------ out of memory


def test_out_of_memory_is_an_error_and_the_context_lives():
    for attempt in range(3):
        with pytest.raises(
            torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried to allocate 9\.00 GiB"
        ):
            torch.zeros(9 * GiB, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            kept = [torch.ones(GiB // 4, device="cuda") for _ in range(10)]
        kept = torch.ones(1000, device="cuda")
        torch.cuda.synchronize()
        assert float(kept.sum()) == 1000
        gc.collect()
        assert interop.memory_stats()["num_ooms"] >= 2 * (attempt + 1)
    assert float(torch.ones(7 * GiB // 4, device="cuda").sum()) > 0  # everything is there again


@pytest.mark.parametrize("nbytes", [9 * GiB, 139 * GiB, 300 << 30, 1 << 40, 4 * 10**15])
def test_a_huge_request_never_costs_the_context(nbytes):
    before = torch.ones(1000, device="cuda")
    for make_huge in (torch.empty, torch.zeros, torch.ones):
        with pytest.raises(torch.OutOfMemoryError, match=rf"Tried to allocate .*{nbytes}"):
            make_huge(nbytes, dtype=torch.uint8, device="cuda")
        assert float((before + 1).sum()) == 2000
    torch.cuda.synchronize()


def test_pytorchs_own_words():
    """Its own tests look for these."""
    words = r"Tried to allocate 800000000\.00 GiB\. GPU 0 has a total capacity of"
    with pytest.raises(RuntimeError, match=words):
        torch.empty(1024**3 * 800_000_000, dtype=torch.int8, device="cuda")
    with pytest.raises(RuntimeError, match="Tried to allocate more than 1EB memory"):
        torch.empty(1024**3 * 8_000_000_000, dtype=torch.int8, device="cuda")


def test_garbage_is_collected_before_a_request_fails():
    class Node:
        pass

    gc.collect()
    gc.disable()
    try:
        for _ in range(40):
            node = Node()
            node.me, node.tensor = node, make(500 * MiB)
    finally:
        gc.enable()
    del node


def test_other_failures_are_told_by_their_class(monkeypatch):
    def refuse(nbytes, stream=None):
        raise smartpool.StreamError("expected another stream")

    POOL.trim()
    for name in ("_search", "_refill"):
        monkeypatch.setattr(POOL.managers[0], name, lambda *_: refuse(0))
    with pytest.raises(RuntimeError, match=r"^StreamError: expected another stream"):
        make(77 * MiB + 1)
    monkeypatch.undo()
    assert make(77 * MiB + 1).numel() == 77 * MiB + 1


def test_a_convolution_makes_do_with_less_workspace():
    """cuDNN's plans ask for workspaces; one that does not fit is passed over, as with PyTorch's allocator."""
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, device="cuda")
    source = torch.randn(32, 64, 128, 128, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = layer(source)
        torch.cuda.synchronize()
        free = 8 * GiB - interop.memory_allocated()
        filler = torch.empty(free - expected.numel() * 4 - 64 * MiB, dtype=torch.uint8, device="cuda")
        result = layer(source)
    del filler  # the comparison needs memory, too
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


def test_out_of_memory_on_autograds_thread():
    data = torch.ones(3 * GiB // 4, device="cuda", requires_grad=True)
    out = data.exp()
    loss = out.sum()
    with pytest.raises(torch.OutOfMemoryError):
        loss.backward()
    del data, out, loss
    gc.collect()
    torch.cuda.synchronize()
    assert float(torch.ones(10, device="cuda").sum()) == 10


def test_the_largest_batch_is_found_by_trying():
    def step(batch: int) -> None:
        weight = torch.randn(1024, 1024, device="cuda", requires_grad=True)
        out = torch.randn(batch, 1024, 1024, device="cuda") @ weight
        out.relu().sum().backward()
        torch.cuda.synchronize()

    batch, fits = 256, None
    while fits is None:
        try:
            step(batch)
            fits = batch
        except torch.OutOfMemoryError:
            gc.collect()
            batch = batch * 3 // 4
    assert fits >= 256
    for candidate in (512, 1024, 2048):
        try:
            step(candidate)
            fits = candidate
        except torch.OutOfMemoryError:
            break
    else:
        pytest.fail("2048 cannot fit")
    assert fits < 2048
    step(256)


def test_out_of_memory_in_the_middle_of_one_call():
    """Cross entropy asks for more behind the request that failed, before it returns to Python."""
    rows, classes = 24_000, 32_768
    logits = torch.zeros(rows, classes, device="cuda", requires_grad=True)  # 2.9 of 8 GiB
    targets = torch.zeros(rows, dtype=torch.int64, device="cuda")
    filler = torch.empty(3 * GiB, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            torch.nn.functional.cross_entropy(logits, targets)
        torch.cuda.synchronize()  # the context lives
    del filler
    gc.collect()
    loss = torch.nn.functional.cross_entropy(logits, targets)
    assert abs(float(loss.detach()) - 10.397) < 0.01
    del logits, targets, loss
    gc.collect()


# ------------------------------------------------------------------ CUDA graphs


def test_a_graph_keeps_its_memory():
    static = torch.randn(512, 512, device="cuda")
    weight = torch.randn(512, 512, device="cuda")

    def compute(x: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = torch.relu(x @ weight) * 0.05 + 0.1
        return x

    compute(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute(static)
    held = interop.memory_stats()["graph_bytes.all.current"]
    assert held >= result.numel() * 4
    for round_ in range(5):
        noise = [torch.full((512, 512), float("nan"), device="cuda") for _ in range(200)]
        static.copy_(torch.randn(512, 512, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(result, compute(static))
        assert all(bool(tensor.isnan().all()) for tensor in noise), round_
    assert POOL._maintenance.background.running
    del graph, result
    gc.collect()
    assert interop.memory_stats()["graph_bytes.all.current"] == 0


def test_a_graph_of_a_whole_training_step():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    source, target = torch.randn(64, 256, device="cuda"), torch.randn(64, 8, device="cuda")

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(source), target)
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(50):
        graph.replay()
        torch.empty(1 << 20, device="cuda").fill_(7)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * 0.9
    assert all(b <= a + 1e-4 for a, b in itertools.pairwise(losses))


def test_graphs_that_share_their_memory():
    handle = torch.cuda.graph_pool_handle()
    static = torch.ones(1 << 20, device="cuda")
    graphs, results = [], []
    for factor in (2.0, 3.0):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=handle):
            results.append((static * factor).sum())
        graphs.append(graph)
    for graph in graphs:
        graph.replay()
    torch.cuda.synchronize()
    assert [float(result) for result in results] == [2 << 20, 3 << 20]
    del graphs[0], graph
    gc.collect()
    assert interop.memory_stats()["graph_bytes.all.current"] > 0
    graphs.clear()
    results.clear()
    gc.collect()
    assert interop.memory_stats()["graph_bytes.all.current"] == 0


# ------------------------------------------------------------------ several frameworks, one pool


def test_cupy_takes_what_pytorch_freed_and_back():
    cupy = pytest.importorskip("cupy")
    for_cupy.install(POOL)
    try:
        tensor = make(7 * MiB)
        address = tensor.data_ptr()
        del tensor
        array = cupy.empty(7 * MiB, cupy.uint8)
        assert array.data.ptr == address
        array[...] = 5
        del array
        tensor = make(7 * MiB)
        assert tensor.data_ptr() == address
        assert bool((tensor == 5).all())  # the very bytes
    finally:
        for_cupy.uninstall()


def test_numba_takes_what_pytorch_freed_and_back():
    cuda = pytest.importorskip("numba.cuda")
    for_numba.install(POOL)
    tensor = make(6 * MiB)
    address = tensor.data_ptr()
    del tensor
    array = cuda.device_array(6 * MiB, dtype="uint8")
    assert array.__cuda_array_interface__["data"][0] == address
    array.copy_to_device(np.full(6 * MiB, 9, "uint8"))
    del array
    tensor = make(6 * MiB)
    assert tensor.data_ptr() == address
    assert bool((tensor == 9).all())
    info = cuda.current_context().get_memory_info()
    assert 0 < info.free <= info.total == 8 * GiB
    with pytest.raises(AllocatorError):
        for_numba.install(POOL)


def test_numba_runs_kernels_on_the_pools_memory():
    cuda = pytest.importorskip("numba.cuda")
    host = np.arange(100_000, dtype="float32")
    array = cuda.to_device(host)
    assert MANAGER.owns(array.__cuda_array_interface__["data"][0])

    @cuda.jit
    def double(x):
        i = cuda.grid(1)
        if i < x.size:
            x[i] *= 2

    try:
        double[(host.size + 255) // 256, 256](array)
    except AttributeError as error:  # Numba 0.68 asks NumPy 2.5 for names that it dropped
        pytest.skip(f"Numba cannot compile with this NumPy: {error}")
    assert (array.copy_to_host() == host * 2).all()


def test_cuda_core_and_rmm_share_too():
    core = pytest.importorskip("cuda.core")
    resource = memory_resource(POOL)
    device = core.Device(0)
    device.set_current()
    tensor = make(5 * MiB)
    address = tensor.data_ptr()
    del tensor
    buffer = resource.allocate(5 * MiB, stream=device.default_stream)
    assert int(buffer.handle) == address
    buffer.close()
    assert make(5 * MiB).data_ptr() == address


def test_a_pool_buffer_of_ours_is_beside_them():
    tensor = make(9 * MiB)
    address = tensor.data_ptr()
    del tensor
    buffer = POOL.allocate(9 * MiB)
    assert buffer.pointer == address
    shared = torch.from_dlpack(buffer)
    shared.fill_(4)
    del buffer
    shared.record_stream(torch.cuda.Stream())
    assert bool((shared == 4).all())
    del shared
    assert make(9 * MiB).data_ptr() != 0
