"""smartpool plan: what it prints, writes and returns."""

from __future__ import annotations

import json
import re

import pytest

from smartpool.cli import main
from smartpool.planner import read_csv
from smartpool.trace import Trace

GOOD = "id,lower,upper,size\n0,0,3,10\n1,2,6,20\n2,4,8,10\n"


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "graph.csv"
    path.write_text(GOOD)
    return path


def test_json_has_the_documented_fields(good, capsys):
    assert main(["plan", str(good), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    seconds = document.pop("seconds")
    assert seconds >= 0
    assert document == {
        "schema": 1,
        "instance": "graph",
        "intervals": 3,
        "load_bytes": 30,
        "height_bytes": 30,
        "gap": 0.0,
        "method": document["method"],
        "proved_optimal": True,
        "capacity_bytes": None,
        "fits": None,
    }


@pytest.mark.parametrize(
    ("capacity", "status", "fits"), [("30", 0, True), ("29", 3, False), ("1KiB", 0, True)]
)
def test_a_capacity_that_is_not_met_is_status_3(good, capsys, capacity, status, fits):
    assert main(["plan", str(good), "--capacity", capacity, "--json"]) == status
    out = capsys.readouterr().out
    assert json.loads(out)["fits"] is fits
    assert out.startswith('{\n "schema": 1,')  # indented, as the other commands' is


def test_text_tells_load_height_and_proof(good, capsys):
    assert main(["plan", str(good), "--capacity", "29", "--progress"]) == 3
    streams = capsys.readouterr()
    assert "optimal" in streams.out
    assert "does not fit into 29 bytes" in streams.out
    assert "above the load" in streams.err


def test_output_and_picture_are_written(good, tmp_path, capsys):
    output, picture = tmp_path / "placed.csv", tmp_path / "plan.svg"
    assert main(["plan", str(good), "--output", str(output), "--picture", str(picture)]) == 0
    assert output.read_text().startswith("id,lower,upper,size,offset\n0,0,3,10,")
    assert len(read_csv(output)) == 3
    assert picture.read_text().startswith("<svg")
    capsys.readouterr()


def test_the_same_seed_gives_the_same_plan(good, tmp_path, capsys):
    texts = []
    for at in range(2):
        output = tmp_path / f"{at}.csv"
        assert main(["plan", str(good), "--seed", "5", "--output", str(output)]) == 0
        texts.append(output.read_text())
    assert texts[0] == texts[1]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,lower,upper,size\n0,5,3,1\n", "bad.csv: line 2: expected an end of at least the start 5, got 3"),
        ("id,lower,upper\n0,0,1\n", "bad.csv: line 1: expected a column 'size'"),
        ("id,lower,upper,size,offset\n0,0,9,8,0\n1,3,5,8,4\n", "collides with bad.csv: line 2"),
    ],
)
def test_bad_input_is_status_2_and_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert main(["plan", str(path)]) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.err.count("\n") == 1
    assert not streams.out


@pytest.mark.parametrize(
    "arguments", [["nowhere.csv"], ["graph.csv", "--time-limit", "-1"], ["graph.csv", "--capacity", "much"]]
)
def test_unusable_arguments_are_status_2(arguments, capsys):
    assert main(["plan", *arguments]) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--picture", "plan.png", "plan.png: expected a name that ends in .svg, .* got .png; rename it"),
        ("--output", "plan.txt", "plan.txt: expected a name that ends in .csv, .* got .txt; rename it"),
        ("-o", "plan.json", "plan.json: expected a name that ends in .csv"),
    ],
)
def test_what_is_written_has_its_own_ending(good, tmp_path, capsys, option, name, said):
    assert main(["plan", str(good), option, str(tmp_path / name)]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / name).exists()


def test_one_interval_is_one(tmp_path, capsys):
    path = tmp_path / "one.csv"
    path.write_text("id,lower,upper,size\n0,0,1,1\n")
    assert main(["plan", str(path), "--capacity", "1", "-o", str(tmp_path / "plan.csv")]) == 0
    out = capsys.readouterr().out
    assert "one.csv: 1 interval\n" in out
    assert "fits into 1 byte (1 B)" in out


def test_a_plan_of_a_trace_whose_ids_come_again_can_be_read(tmp_path, capsys):
    path, placed = tmp_path / "t.npz", tmp_path / "placed.csv"
    Trace.from_columns("t", op=[0, 1, 0, 0], id=[7, 7, 7, 3], size=[8, 8, 16, 4]).save(path)
    assert main(["plan", str(path), "-o", str(placed)]) == 0
    assert read_csv(placed).size.tolist() == [8, 16, 4]
    capsys.readouterr()


@pytest.mark.parametrize("name", ["table", "table.txt", "table.csv"])
def test_a_table_of_any_name_is_told_what_it_lacks(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_text("name,first,last\nx,0,1\n")
    assert main(["plan", str(path)]) == 2
    assert f"{name}: line 1: expected a column 'id' or 'buffer'" in capsys.readouterr().err


def test_bundled_traces_have_names(capsys):
    assert main(["plan", "multistream-mix", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["instance"], document["intervals"], document["gap"]) == ("multistream-mix", 1204, 0.0)
