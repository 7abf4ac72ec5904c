from __future__ import annotations

import json

import pytest

from smartpool import MiB, SmartPool
from smartpool.cli import main
from smartpool.recommendations import recommend
from smartpool.trace import Trace


@pytest.fixture
def trace(tmp_path):
    """A program that nobody has told of steps."""
    with SmartPool("model:8GiB", record=True) as pool:
        for _ in range(200):
            held = [pool.malloc(step * MiB) for step in range(1, 20)]
            for pointer in held:
                pool.free(pointer)
        path = tmp_path / "run.npz"
        pool.stop_recording().save(path)
    return path


def test_it_tells_what_the_function_finds(trace, capsys):
    found = recommend(Trace.load(trace))
    assert found
    assert main(["advise", str(trace)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith(f": {len(found)} recommendation{'' if len(found) == 1 else 's'}")
    assert lines == [f"- {advice.kind}: {advice.text}" for advice in found]


def test_json(trace, capsys):
    assert main(["advise", str(trace), "--policy", "fast", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert told["trace"] == Trace.load(trace).name
    for advice in told["recommendations"]:
        assert {"kind", "device", "text", "nbytes", "figures"} == advice.keys()


def test_a_short_trace_has_none(tmp_path, capsys):
    Trace.from_columns("tiny", op=[0, 1], id=[0, 0], size=[512, 512]).save(tmp_path / "tiny.npz")
    assert main(["advise", str(tmp_path / "tiny.npz")]) == 0
    assert capsys.readouterr().out == "tiny: 0 recommendations\n"


@pytest.mark.parametrize("arguments", [["no-such-trace"], ["run.npz", "--policy", "quick"], []])
def test_what_cannot_be_advised(arguments, capsys):
    assert main(["advise", *arguments]) == 2
    assert "expected" in capsys.readouterr().err or not arguments
