"""Text that UTF-8 cannot encode: it comes in by many doors, and every writer can write what is kept of it."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool import OutOfMemoryError, SmartPool, SmartPoolConfig
from smartpool.live.view import LiveView
from smartpool.report import report
from smartpool.report.dump import read_dump
from smartpool.report.dump_report import dump_report
from smartpool.report.page import write_page
from smartpool.trace import Trace, read_any
from smartpool.trace.exporters import FORMATS, write_any
from smartpool.values import encodable

ODD = "caf\udce9"  # what os.fsdecode makes of a file name in Latin-1
ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT, ANY_TEXT)
def test_a_trace_keeps_text_that_can_be_encoded_wherever_it_stands(name, text):
    meta = {"sites": [text], text: [{"deep": text}]}
    trace = Trace.from_columns(name, op=[0], id=[0], size=[8], site=[0], meta=meta)
    json.dumps([trace.name, dict(trace.meta)], ensure_ascii=False).encode()
    assert trace.sites == (encodable(text),)


@pytest.mark.parametrize("form", FORMATS)
def test_what_every_exporter_writes_reads_back_equal(form, tmp_path):
    trace = Trace.from_columns(
        ODD, op=[0, 1], id=[0, 0], size=[8, 8], site=[0, 0], meta={"sites": [f"/{ODD}.py:1 f"]}
    )
    path = tmp_path / f"trace{FORMATS[form][0]}"
    write_any(trace, path)
    if form == "chrome":  # nobody reads it back
        assert "caf" in json.dumps(json.loads(path.read_bytes()), ensure_ascii=False).encode().decode()
    else:
        assert read_any(path).sites == trace.sites
    report(trace, tmp_path / "trace.html")


def a_busy_pool(tmp_path):
    """Return a pool whose tags, scopes and stacks are odd, and the error of a request that failed."""
    config = SmartPoolConfig(track=True, stack_depth=4, out_of_memory_dump=str(tmp_path))
    pool = SmartPool("model:64MiB", config)
    pool.start_recording()
    scene = {"pool": pool, "odd": ODD, "held": []}
    code = "with pool.tag(odd), pool.profile(odd): held.append(pool.malloc(40 << 20)); pool.malloc(40 << 20)"
    with pytest.raises(OutOfMemoryError) as failed:
        exec(compile(code, f"/{ODD}.py", "exec"), scene)
    return pool, failed.value


def test_what_a_pool_tells_can_be_written(tmp_path):
    pool, error = a_busy_pool(tmp_path)
    with pool:
        told = [str(error), pool.get_statistics(), LiveView(pool).frame(
            {"device": 0, "first": 0, "last": None, "cells": 16, "after": 0}
        )]  # fmt: skip
        json.dumps(told, ensure_ascii=False).encode()
        assert pool.statistics.devices[0].tracked.tags[encodable(ODD)].current_bytes == 40 << 20
        assert encodable(ODD) in pool.recording().sites[0]
        report(pool, tmp_path / "pool.html")
        write_page(tmp_path / "dump.html", dump_report(read_dump(error.dump_path)))
        assert pickle.loads(pickle.dumps(pool.recording())) == pool.recording()
