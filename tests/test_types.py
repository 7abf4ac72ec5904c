"""What type checkers let through: what runs, and nothing that raises."""

from __future__ import annotations

import re
import textwrap

import pytest

api = pytest.importorskip("mypy.api")

GOOD = """
import numpy
import smartpool
from smartpool import SmartPool, SmartPoolConfig

class Stream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 0

class TorchDType:
    is_floating_point = True
    is_complex = False

pool = SmartPool("cpu", max_bytes="1GiB", policy="tight")
SmartPool(["cpu", "model:1GiB"], SmartPoolConfig(policy=0.3), record=True)
SmartPool("cpu", {"max_bytes": "1GiB"})
SmartPool(smartpool.GPUMemoryOptimizer({"devices": ["cpu"]}))
SmartPool(pool.managers[0].driver)
pool.empty(3)
pool.empty((2, 3), "bfloat16", stream=0)
pool.empty([numpy.int64(2), 3], numpy.float32, stream=Stream())
pool.empty((), numpy.dtype("int8"), device_id=1, alignment=4096)
pool.empty((1,), TorchDType())
pool.empty((1,), complex)
pool.free(pool.malloc(100, Stream()), stream=None)
address: int = pool.malloc(100)
buffer: smartpool.Buffer = pool.allocate(100, 0)
measured = pool.measured_reduction()
percentage: float = pool.statistics.overall_reduction_percentage if measured is None else measured.percentage
"""

BAD = """
import smartpool
from smartpool import SmartPool, SmartPoolConfig

pool = SmartPool("cpu")
pool.empty("three")  # wrong
pool.empty((2, 1.5))  # wrong
pool.empty(None)  # wrong
pool.empty(3, 4)  # wrong
pool.empty(3, None)  # wrong
pool.empty(3, "int8", stream="main")  # wrong
pool.empty(3, "int8", device_id="0")  # wrong
pool.malloc(100, stream=[])  # wrong
pool.malloc("100")  # wrong
pool.free(pool.allocate(100))  # wrong
pool.recording("x")  # wrong
SmartPool("cpu", policy="quick")  # wrong
SmartPool("cpu", max_byte="1GiB")  # wrong
SmartPool("cpu", record="yes")  # wrong
SmartPool("cpu", "1GiB")  # wrong
SmartPool(5)  # wrong
SmartPoolConfig(policy="quick")  # wrong
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """Return by file the lines that mypy complains of; one run for both."""
    folder = tmp_path_factory.mktemp("types")
    files = {name: folder / f"{name}.py" for name in ("good", "bad")}
    for name, text in (("good", GOOD), ("bad", BAD)):
        files[name].write_text(textwrap.dedent(text), encoding="utf-8")
    cache = f"--cache-dir={folder / 'cache'}"
    out, errors, _ = api.run(["--strict", "--no-error-summary", cache, *map(str, files.values())])
    assert not errors
    found = re.findall(r"(good|bad)\.py:(\d+): error: (.*)", out)
    return {name: {int(line): text for file, line, text in found if file == name} for name in files}


def test_what_runs_passes(complaints):
    assert complaints["good"] == {}


def test_what_raises_is_found(complaints):
    wrong = {number for number, line in enumerate(BAD.splitlines(), 1) if line.endswith("# wrong")}
    assert complaints["bad"].keys() == wrong
