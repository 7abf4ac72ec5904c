from __future__ import annotations

import json

import pytest

import smartpool
from smartpool import MiB
from smartpool.cli import main
from smartpool.trace import Trace


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "run.npz"
    Trace.from_columns("t", op=[0, 1], id=[0, 0], size=[3 * MiB, 3 * MiB]).save(path)
    return path


def test_of_a_trace(source, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["report", str(source), "-o", str(target), "--against", "cupy,rmm", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["path"], told["bytes"]) == ("trace", str(target), target.stat().st_size)
    assert [run["allocator"] for run in told["runs"]] == ["smartpool", "cupy", "rmm"]
    page = target.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "CuPy" in page


def test_a_line_for_people_and_a_name_of_its_own(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(source), "--against", "none", "--title", "Mine"]) == 0
    assert capsys.readouterr().out.endswith("KiB, 3.00 MiB live at the peak\n")
    assert "<h1>Mine</h1>" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_of_what_an_out_of_memory_error_left(tmp_path, capsys):
    config = smartpool.SmartPoolConfig(max_bytes="64MiB", out_of_memory_dump=str(tmp_path))
    with smartpool.SmartPool("model:1GiB", config) as pool:
        held = [pool.malloc(20 * MiB) for _ in range(3)]
        with pytest.raises(smartpool.OutOfMemoryError) as caught:
            pool.malloc(30 * MiB)
        for pointer in held:
            pool.free(pointer)
    target = tmp_path / "oom.html"
    assert main(["report", str(caught.value.dump_path), "-o", str(target)]) == 0
    assert capsys.readouterr().out.endswith("30.0 MiB asked for\n")
    page = target.read_text(encoding="utf-8")
    assert "Out of memory: 30.0 MiB" in page
    assert "3 blocks" in page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{source}", "--gpu", "1"], "expected a PyTorch snapshot where a device is named"),
        (["multistream-mix", "--gpu", "3"], "expected a PyTorch snapshot where a device is named"),
        (["nowhere.npz"], "expected a trace file"),
        (["{source}", "--against", "malloc"], "expected names out of"),
        (["{source}", "-o", "{folder}/missing/x.html", "--against", "none"], "missing"),
        (["{folder}/bad.json"], "no JSON"),
    ],
)
def test_unusable_arguments(source, tmp_path, capsys, arguments, expected):
    (tmp_path / "bad.json").write_text('{"format": "smartpool-out-of-memory"')
    filled = [part.format(source=source, folder=tmp_path) for part in arguments]
    assert main(["report", *filled]) == 2
    assert expected in capsys.readouterr().err


@pytest.fixture
def dump(tmp_path):
    config = smartpool.SmartPoolConfig(max_bytes="64MiB", out_of_memory_dump=str(tmp_path))
    with smartpool.SmartPool("model:1GiB", config) as pool:
        held = pool.malloc(40 << 20)
        with pytest.raises(smartpool.OutOfMemoryError) as caught:
            pool.malloc(40 << 20)
        pool.free(held)
    return caught.value.dump_path


@pytest.mark.parametrize(
    "option", ["--against=pytorch", "--device=cpu", "--capacity=1GiB", "--policy=tight", "--gpu=0"]
)
def test_an_option_that_a_dump_has_no_use_for_is_refused(dump, tmp_path, capsys, option):
    target = tmp_path / "page.html"
    assert main(["report", str(dump), option, "-o", str(target)]) == 2
    assert f"{option.partition('=')[0]}: expected a trace to replay" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(("capacity", "status"), [("2MiB", 3), ("64MiB", 0)])
def test_failed_requests_are_status_3(source, tmp_path, capsys, capacity, status):
    target = tmp_path / "page.html"
    arguments = [
        "report",
        str(source),
        "--against",
        "none",
        "--capacity",
        capacity,
        "-o",
        str(target),
        "--json",
    ]
    assert main(arguments) == status
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"][0]["failed_requests"] > 0) is (status == 3)
    assert target.exists()  # a page about what did not fit is what was asked for


def test_the_line_says_why_the_status_is_3(source, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["report", str(source), "--against", "none", "--capacity", "2MiB", "-o", str(target)]) == 3
    assert "3.00 MiB live at the peak, 1 failed request among all allocators\n" in capsys.readouterr().out
