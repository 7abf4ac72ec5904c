"""The public surface, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import smartpool


def test_all_is_sorted_and_there():
    own = [name for name in smartpool.__all__ if name not in smartpool.errors.__all__]
    assert own == sorted(own)
    assert len(set(smartpool.__all__)) == len(smartpool.__all__)
    for name in smartpool.__all__:
        assert getattr(smartpool, name) is not None


def test_the_names_of_the_original_design_are_there():
    for name in (
        "GPUMemoryOptimizer",
        "integrate_smartpool_with_gpu_optimizer",
        "SmartPool",
        "SmartPoolConfig",
        "AllocationRequest",
        "WeightedIntervalGraphColoring",
        "AdvancedMemoryPoolManager",
    ):
        assert name in smartpool.__all__


def test_every_public_name_has_a_docstring():
    for name in smartpool.__all__:
        value = getattr(smartpool, name)
        if callable(value):
            assert value.__doc__, name


@pytest.mark.parametrize("package", [smartpool, smartpool.driver, smartpool.report])
def test_what_is_offered_is_public_and_there(package):
    assert set(package.__all__) <= set(dir(package))
    for name in dir(package):
        assert name == "__version__" or not name.startswith("_")
        assert getattr(package, name) is not None
        assert name in package.__all__ or getattr(package, name).__doc__


def test_what_a_pool_offers_is_public_and_described():
    """Methods by themselves, attributes in the docstring of the class."""
    with smartpool.SmartPool("model:1GiB") as pool:
        described = inspect.getdoc(smartpool.SmartPool)
        for name in dir(pool):
            assert not name.startswith("_")
            assert getattr(smartpool.SmartPool, name, None) is not None or f"\n{name}\n" in described
        for name in (
            "malloc",
            "free",
            "allocate",
            "empty",
            "step",
            "statistics",
            "config",
            "managers",
            "hooks",
        ):
            assert name in dir(pool)
        inside = {"background", "background_pass", "pressure_callbacks", "free_to_move"}
        assert not inside & set(dir(pool))


def called_wrongly(method):
    entered = method(nothing=1)  # a method that makes a scope looks at its arguments when that is entered
    if hasattr(entered, "__enter__"):
        entered.__enter__()


def test_wrong_arguments_are_told_of_the_method_that_was_called():
    with smartpool.SmartPool(["model:1GiB", "model:1GiB"]) as pool:
        for name in dir(pool):
            if inspect.ismethod(getattr(pool, name)):
                with pytest.raises(TypeError, match=rf"^SmartPool\.{name}\(\) got an unexpected keyword"):
                    called_wrongly(getattr(pool, name))


def test_importing_brings_no_cuda_and_little_else():
    code = (
        "import sys, smartpool;"
        "print([m for m in sys.modules if m.split('.')[0] in"
        " ('cuda', 'torch', 'cupy', 'jax', 'rich', 'hypothesis', 'asyncio', 'argparse',"
        " 'decimal', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pool_that_is_used_and_asked_brings_nothing_of_the_laboratory():
    code = (
        "import sys, smartpool;"
        "pool = smartpool.SmartPool('model:1GiB', track=True);"
        "pool.free(pool.malloc(1000)); pool.empty(10);"
        "pool.optimize_memory(); pool.get_statistics(); str(pool.statistics); pool.measured_reduction();"
        "pool.recording(); pool.stop_recording(); pool.memory_map(); pool.check(); pool.close();"
        "beside = {'trace', 'report', 'live', 'testing', 'cli', 'interop', 'recommendations'};"
        "print([m for m in sys.modules if m.startswith('smartpool.') and m.split('.')[1] in beside])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
