from __future__ import annotations

import json
import re

import numpy as np
import pytest

from smartpool.cli import main
from smartpool.cli.demo import show_buffers


def test_the_demo_shows_buffers_tables_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--trace", "multistream-mix", "--trace", "dataframe-mix"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(re.findall(r"0x[0-9a-f]+ +the same bytes", out)) == 3
    assert "handed out again" in out
    assert re.search(r"multistream-mix +smartpool ", out)
    assert re.search(r"mean +\d", out)
    picture = tmp_path / "smartpool-demo.html"
    assert out.rstrip().endswith(str(picture))
    assert "multistream-mix" in picture.read_text(encoding="utf-8")


def test_the_demo_for_programs(tmp_path, capsys):
    picture = tmp_path / "picture.html"
    assert main(["demo", "--json", "--trace", "multistream-mix", "--output", str(picture)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["picture"] == str(picture.resolve())
    assert [run["allocator"] for run in document["runs"]][:2] == ["smartpool", "pytorch"]
    assert document["buffers"]["reused"] is True
    assert document["buffers"]["live_bytes"] == sum(one["nbytes"] for one in document["buffers"]["sights"])


def test_numpy_reads_the_very_bytes_of_the_cpu_device():
    shown = show_buffers("cpu")
    assert [np.dtype(sight["dtype"]).itemsize * np.prod(sight["shape"]) for sight in shown["sights"]] == [
        sight["nbytes"] for sight in shown["sights"]
    ]
    assert all(sight["shared"] for sight in shown["sights"])
    assert shown["live_bytes"] <= shown["reserved_bytes"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "nonsense"], "no device 'nonsense'"),
        (["--device", "model:1GiB"], "has addresses and no memory"),
        (["--trace", "nonsense"], "no such file"),
        (["--trace", "multistream-mix", "--output", "missing/picture.html"], "missing/picture.html"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("smartpool: error: ")
    assert expected in err
    assert err.count("\n") == 1
