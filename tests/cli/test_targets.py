"""No command overwrites what it reads, and each says the same of a folder that is not there."""

from __future__ import annotations

import os

import pytest

import smartpool
from smartpool.cli import main
from smartpool.trace import Trace

WRITERS = {
    "report": ["report", "{read}", "-o", "{written}"],
    "replay": ["replay", "{read}", "--against", "none", "--json", "--picture", "{written}"],
    "replay-second": ["replay", "dataframe-mix", "{read}", "--json", "--picture", "{written}"],
    "demo": ["demo", "--trace", "{read}", "--json", "--output", "{written}"],
    "plan-picture": ["plan", "{read}", "--picture", "{written}"],
    "plan-output": ["plan", "{read}", "--output", "{written}"],
}


def write_trace(path):
    Trace.from_columns("t", op=[0, 1], id=[0, 0], size=[4096, 4096]).save(path)


def filled(arguments, read, written):
    return [part.format(read=read, written=written) for part in arguments]


def same(path):
    return path


def symbolic(path):
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def hard(path):
    link = path.with_name("link")
    os.link(path, link)
    return link


def around(path):
    return path.parent / ".." / path.parent.name / path.name


@pytest.mark.parametrize("named", [same, symbolic, hard, around])
@pytest.mark.parametrize("arguments", WRITERS.values(), ids=WRITERS)
def test_no_command_overwrites_what_it_reads(tmp_path, capsys, arguments, named):
    path = tmp_path / "t.npz"
    write_trace(path)
    before = path.read_bytes()
    assert main(filled(arguments, path, named(path))) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "expected another file than the input to write" in err
    assert path.read_bytes() == before


def test_a_dump_is_not_overwritten_either(tmp_path, capsys):
    config = smartpool.SmartPoolConfig(max_bytes="64MiB", out_of_memory_dump=str(tmp_path))
    with smartpool.SmartPool("model:1GiB", config) as pool:
        held = pool.malloc(40 << 20)
        with pytest.raises(smartpool.OutOfMemoryError) as caught:
            pool.malloc(40 << 20)
        pool.free(held)
    dump = caught.value.dump_path
    assert main(["report", str(dump), "-o", str(dump)]) == 2
    assert "expected another file" in capsys.readouterr().err
    assert main(["report", str(dump), "-o", str(tmp_path / "page.html")]) == 0


def test_a_name_that_the_command_chooses_is_looked_at_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, arguments in (("t.html", ["report", "t.html"]), ("smartpool-demo.html", ["demo", "--json"])):
        write_trace(tmp_path / "t.npz")
        (tmp_path / "t.npz").rename(name)
        more = ["--trace", name] if arguments[0] == "demo" else []
        assert main([*arguments, *more]) == 2
        assert "expected another file" in capsys.readouterr().err
        assert Trace.load(tmp_path / name).events == 2


def test_plan_writes_its_two_results_to_two_files(tmp_path, capsys):
    path = tmp_path / "t.npz"
    write_trace(path)
    both = str(tmp_path / "both")
    assert main(["plan", str(path), "--output", both, "--picture", both]) == 2
    assert "another for --picture" in capsys.readouterr().err


def test_a_conversion_onto_itself_loses_nothing(tmp_path, capsys):
    path = tmp_path / "t.npz"
    write_trace(path)
    before = Trace.load(path)
    assert main(["convert", str(path), str(path)]) == 0
    assert Trace.load(path) == before
    capsys.readouterr()


def test_a_file_that_a_bundled_trace_is_named_like_may_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "multistream-mix", "--output", "multistream-mix"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "multistream-mix", "--against", "none", "-o", "page.pdf"],
        ["replay", "multistream-mix", "--against", "none", "--json", "--picture", "page.pdf"],
        ["demo", "--json", "-o", "page.pdf"],
    ],
)
def test_a_page_is_not_written_into_a_file_of_another_kind(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "page.pdf: expected a name that ends in .html or .htm" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


CONVERT = {"convert": ["convert", "{read}", "{written}", "--to", "csv"]}


@pytest.mark.parametrize("arguments", (WRITERS | CONVERT).values(), ids=WRITERS | CONVERT)
def test_a_missing_folder_is_told_in_one_wording(tmp_path, capsys, arguments):
    path, folder = tmp_path / "t.npz", tmp_path / "none"
    write_trace(path)
    assert main(filled(arguments, path, folder / "x")) == 2
    expected = f"{folder / 'x'}: there is no folder {str(folder)!r}; make it, or name another"
    assert capsys.readouterr().err == f"smartpool: error: {expected}\n"
