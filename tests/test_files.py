"""Files that others wrote are opened whole, within bounds, and without waiting."""

from __future__ import annotations

import gzip
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S

from smartpool import files
from smartpool.errors import PlanningError, TraceFormatError
from smartpool.files import open_regular, read_bytes
from smartpool.units import MiB


@given(st.binary(max_size=3000).filter(lambda data: not data.startswith(b"\x1f\x8b")), st.integers(0, 9))
def test_packed_or_not_the_content_is_the_same(tmp_path_factory, data, level):
    folder = tmp_path_factory.mktemp("files")
    (folder / "plain").write_bytes(data)
    (folder / "packed").write_bytes(gzip.compress(data, level))
    assert read_bytes(folder / "plain") == read_bytes(folder / "packed") == data
    with open_regular(folder / "packed") as file:
        assert file.seek(1) == 1
        assert file.read() == data[1:]


@given(st.data())
def test_a_damaged_packed_file_is_one_error_of_the_callers_class(tmp_path_factory, data):
    whole = gzip.compress(b"some text that is packed " * 9)
    damaged = bytearray(whole[: data.draw(st.integers(2, len(whole)))])
    at = data.draw(st.integers(2, len(damaged))) if len(damaged) == len(whole) else len(damaged)
    if at < len(damaged):
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("files") / "x"
    path.write_bytes(damaged)
    told = str(path)
    try:
        read_bytes(path, error=PlanningError)
    except PlanningError as error:
        told = str(error)
    assert str(path) in told


def test_a_packed_file_does_not_unpack_without_end(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(17 * MiB)))
    with pytest.raises(TraceFormatError, match="unpacks to at most 16 MiB, got more"):
        open_regular(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_file_that_becomes_a_pipe_after_the_look_is_not_waited_for(tmp_path, monkeypatch):
    """Between the look at a name and the opening somebody may put another thing there."""
    path = tmp_path / "x"
    path.write_bytes(b"x")
    look, told = files._check, []

    def swap(*arguments):
        look(*arguments)
        if not told:
            path.unlink()
            os.mkfifo(path)
        told.append(arguments)

    def read():
        try:
            read_bytes(path)
        except TraceFormatError as error:
            told.append(str(error))

    monkeypatch.setattr(files, "_check", swap)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(PATIENCE_S)
    waits = reader.is_alive()
    if waits:  # let it go, for the tests that follow
        os.close(os.open(path, os.O_RDWR))
    assert not waits
    assert "expected a regular file, got a pipe or a device" in told[-1]


@pytest.mark.parametrize("name", ["a\0b", b"a\0b"])
def test_a_name_that_no_file_has_is_one_error(name):
    with pytest.raises(PlanningError, match="expected the name of a file, got one with a NUL in it"):
        open_regular(name, error=PlanningError)
