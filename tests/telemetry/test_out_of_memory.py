"""Out of memory tells the story: in the error, to hooks, in the log, and in a file."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import secrets
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S

from smartpool import KiB, MiB, OutOfMemoryError, RequestTooLargeError, SmartPool, SmartPoolConfig
from smartpool.driver import open_driver
from smartpool.errors import REQUEST_TOO_LARGE, DriverError, DriverOutOfMemoryError
from smartpool.telemetry import out_of_memory
from smartpool.telemetry.out_of_memory import DUMP_FORMAT, DUMP_VARIABLE, DUMP_VERSION


def failed(pool, nbytes):
    with pytest.raises(OutOfMemoryError) as caught:
        pool.malloc(nbytes)
    pool.check()
    return caught.value


def test_the_figures_are_those_of_the_pool_at_that_moment():
    config = SmartPoolConfig(max_bytes="64MiB", enable_auto_defragmentation=False)
    with SmartPool("model:1GiB", config) as pool:
        held = [pool.malloc(4 * MiB) for _ in range(14)]
        for pointer in held[::4]:
            pool.free(pointer)
        report = failed(pool, 30 * MiB).report
        now = pool.statistics.devices[0]
        assert (report.requested_bytes, report.stream, report.device) == (30 * MiB, 0, "model:1GiB")
        for name in (
            "live_bytes", "live_blocks", "cap_bytes", "reserved_bytes", "gap_bytes", "largest_free_bytes",
            "device_total_bytes", "device_free_bytes",
        ):  # fmt: skip
            assert getattr(report, name) == getattr(now, name), name
        assert dict(report.fragmentation) == now.fragmentation.as_dict()
        assert report.code == "CAP_REACHED"


WORDS = re.compile(r"out of memory\. Tried to allocate ([0-9.e+]+ ([KMGTPE]i)?B|2\*\*[0-9]+ B or more)\b")
"""What programs look for in the message of an error, whichever the allocator."""


@pytest.mark.parametrize("device", ["model:64MiB", "cpu"])
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("debug", [True, False])
def test_every_message_has_the_words_that_programs_look_for(device, pooling, debug):
    config = SmartPoolConfig(max_bytes="64MiB", enable_advanced_pooling=pooling, debug=debug)
    with SmartPool(device, config) as pool:
        held = pool.malloc(40 * MiB)
        for nbytes in (30 * MiB, 64 * MiB + 1, 10**15, 1 << 64, 10**400, 10**5000):
            assert WORDS.search(str(failed(pool, nbytes)))
        with pytest.raises(OutOfMemoryError, match=WORDS):
            pool.empty((10**200, 10**200))
        with pytest.raises(OutOfMemoryError, match=WORDS):
            pool.empty(100, alignment=1 << 60)
        pool.free(held)


def test_a_shape_whose_product_is_beyond_64_bits_is_told_to_the_byte():
    with SmartPool("model:16GiB") as pool, pytest.raises(OutOfMemoryError, match=f"{2**64 + 4} bytes"):
        pool.empty((2, 2, 5, 5581, 8681, 49477, 384773), "uint8")


@given(
    st.sampled_from(["allocate", "create_chunk"]),
    st.one_of(st.integers(33, 1 << 20), st.integers(10**300, 10**400)),
)
def test_a_bare_driver_has_them_too(call, granules):
    driver = open_driver("model:64MiB")
    with pytest.raises(DriverOutOfMemoryError, match=WORDS):
        getattr(driver, call)(granules * 2 * MiB)
    driver.faults.fail(call)
    with pytest.raises(DriverOutOfMemoryError, match=WORDS):
        getattr(driver, call)(2 * MiB)
    with pytest.raises(DriverError):
        driver.reserve(granules << 300)


def test_the_device_is_named_and_cuda_as_programs_expect_it():
    with SmartPool("model:64MiB") as pool:
        asked = "out of memory. Tried to allocate 65 MiB (68157440 bytes) on"
        assert str(failed(pool, 65 * MiB)).startswith(f"model:64MiB {asked} model:64MiB, which")
        pool.managers[0].driver.name = "cuda:3"
        assert str(failed(pool, 65 * MiB)).startswith(f"CUDA {asked} cuda:3, which")


@pytest.mark.parametrize(
    ("limit", "code", "whose"),
    [("64MiB", "CAP_REACHED", "the pool's limit"), (None, "OUT_OF_MEMORY", "what model:96MiB has")],
)
def test_the_message_tells_whose_limit_it_is(limit, code, whose):
    with SmartPool("model:96MiB", SmartPoolConfig(max_bytes=limit)) as pool:
        held = pool.malloc(60 * MiB)
        error = failed(pool, 40 * MiB)
        assert (error.report.code, error.report.limited) == (code, limit is not None)
        assert whose in str(error)
        assert ("limit" in str(error)) == ("max_bytes" in str(error)) == (limit is not None)
        error = failed(pool, 97 * MiB)
        assert ("limit" in str(error)) == ("max_bytes" in str(error)) == (limit is not None)
        pool.free(held)


def test_holders_are_named_by_tag_place_and_size():
    with SmartPool("model:64MiB") as pool:
        pool.start_tracking(stack_depth=4)
        with pool.tag("activations"):
            many = [pool.malloc(3 * MiB) for _ in range(10)]
        with pool.tag("weights"):
            one = pool.malloc(9 * MiB)
        report = failed(pool, 40 * MiB).report
        tags = [(h.name, h.blocks, h.nbytes) for h in report.holders if h.kind == "tag"]
        assert tags == [("activations", 10, 30 * MiB), ("weights", 1, 9 * MiB)]
        stacks = [holder for holder in report.holders if holder.kind == "stack"]
        assert [holder.nbytes for holder in stacks] == [30 * MiB, 9 * MiB]
        assert __file__ in stacks[0].name
        sizes = [(h.name, h.blocks) for h in report.holders if h.kind == "size"]
        assert sizes == [("3 MiB", 10), ("9 MiB", 1)]
        assert "30 MiB in 10 blocks by tag 'activations'" in report.text()
        assert any("activations" in advice.text for advice in report.advice)
        assert len(many) + bool(one) == 11


def test_advice_tells_what_is_missing_and_what_the_limit_costs():
    with SmartPool("model:1GiB", SmartPoolConfig(max_bytes="64MiB")) as pool:
        pool.malloc(60 * MiB)
        advice = {a.text.split(":")[0]: a for a in failed(pool, 30 * MiB).report.advice}
        assert advice["free what is not needed"].nbytes == 26 * MiB
        assert advice["raise max_bytes"].nbytes == 1024 * MiB - 60 * MiB
        assert any("start_tracking" in text for text in advice)


def test_advice_tells_of_others_on_the_device():
    with SmartPool("model:64MiB") as pool:
        taken = pool.managers[0].driver.allocate(50 * MiB)
        report = failed(pool, 30 * MiB).report
        assert report.advice[0].nbytes == 50 * MiB
        assert "held by others" in report.advice[0].text
        pool.managers[0].driver.free(taken)


def test_advice_tells_of_pieces_that_no_mapping_reaches():
    with SmartPool("model:64MiB", SmartPoolConfig(policy="fast")) as pool:
        blocks = [pool.malloc(512 * KiB) for _ in range(128)]
        for block in blocks[1::2]:
            pool.free(block)
        report = failed(pool, 20 * MiB).report
        assert report.gap_bytes == 32 * MiB
        assert any("policy='tight'" in advice.text for advice in report.advice)


def test_the_dump_holds_everything_and_the_error_names_it(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "there"
    with SmartPool("model:64MiB", SmartPoolConfig(out_of_memory_dump=str(folder), stack_depth=6)) as pool:
        with pool.tag("cache"):
            held = pool.malloc(40 * MiB)
        first, second = failed(pool, 30 * MiB), failed(pool, 31 * MiB)
        assert first.dump_path != second.dump_path
        assert sorted(map(str, folder.iterdir())) == sorted([first.dump_path, second.dump_path])
        document = json.loads(Path(first.dump_path).read_text())
        assert (document["format"], document["version"]) == (DUMP_FORMAT, DUMP_VERSION)
        assert document["story"] == json.loads(json.dumps(first.report.as_dict()))
        blocks = document["memory_map"]["blocks"]
        assert (blocks["address"], blocks["tag"]) == ([held], ["cache"])
        assert "test_the_dump_holds" in document["memory_map"]["stacks"][blocks["stack"][0]]
        assert "failed" in document["stack"]
        assert document["snapshot"]["live_bytes"] == 40 * MiB
        assert document["process"].keys() == {"pid", "thread"}


def test_the_error_and_the_log_say_how_to_read_the_dump(tmp_path, caplog):
    folder = tmp_path / "dumps of today"
    with SmartPool("model:64MiB", SmartPoolConfig(out_of_memory_dump=str(folder))) as pool:
        pool.malloc(40 * MiB)
        error = failed(pool, 30 * MiB)
        (note,) = error.__notes__
        command = shlex.split(note.rpartition(": ")[2])
        assert command == ["smartpool", "report", error.dump_path]
        (record,) = caplog.records
        assert record.message == f"{error}\n{note}"


def test_a_dump_is_not_written_through_a_link_that_was_planted(tmp_path, monkeypatch):
    """Even by who could foresee the name."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "foreseen")
    for ahead in range(PATIENCE_S):
        time = datetime.now(UTC) + timedelta(seconds=ahead)
        name = f"smartpool-oom-{time:%Y%m%dT%H%M%SZ}-{os.getpid()}-foreseen"
        (tmp_path / f"{name}.part").symlink_to(precious)
        (tmp_path / f"{name}.json").symlink_to(precious)
    with SmartPool("model:64MiB", SmartPoolConfig(out_of_memory_dump=str(tmp_path))) as pool:
        pool.malloc(40 * MiB)
        error = failed(pool, 30 * MiB)
        assert error.dump_path is None
        assert "could not be written" in error.__notes__[0]
    assert precious.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1 + 2 * PATIENCE_S  # what is not ours is not removed, either


def test_processes_of_one_number_do_not_write_over_each_other(tmp_path, monkeypatch):
    """As in containers, where each is number 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with SmartPool("model:64MiB", SmartPoolConfig(out_of_memory_dump=str(tmp_path))) as pool:
        pool.malloc(40 * MiB)
        paths = {failed(pool, 30 * MiB).dump_path for _ in range(20)}
    assert {str(path) for path in tmp_path.iterdir()} == paths
    assert len(paths) == 20


def test_the_environment_asks_for_a_dump(tmp_path, monkeypatch):
    monkeypatch.setenv(DUMP_VARIABLE, str(tmp_path))
    with SmartPool("model:64MiB") as pool:
        pool.malloc(40 * MiB)
        assert failed(pool, 30 * MiB).dump_path.startswith(str(tmp_path))


@pytest.mark.parametrize("folder", ["file", "a" * 5000, "lone \ud800"])
def test_a_dump_that_cannot_be_written_hides_nothing(tmp_path, folder):
    (tmp_path / "file").write_text("in the way")
    with SmartPool("model:64MiB", SmartPoolConfig(out_of_memory_dump=str(tmp_path / folder))) as pool:
        pool.malloc(40 * MiB)
        error = failed(pool, 30 * MiB)
        assert error.dump_path is None
        assert "could not be written" in error.__notes__[0]
        assert error.report.live_bytes == 40 * MiB


def test_hooks_and_log_are_told(caplog):
    with SmartPool("model:64MiB") as pool:
        told = []
        pool.hooks.on_out_of_memory(told.append)
        pool.malloc(40 * MiB)
        error = failed(pool, 30 * MiB)
        assert told == [error.report]
        (record,) = caplog.records
        assert (record.levelno, record.name) == (logging.WARNING, "smartpool")
        assert "30 MiB" in record.message


def test_a_step_that_finds_no_region_is_no_story(caplog):
    with SmartPool("model:64MiB") as pool:
        told = []
        pool.hooks.on_out_of_memory(told.append)
        with pool.step():
            pool.free(pool.malloc(40 * MiB))
        held = pool.malloc(50 * MiB)
        with pool.step(wait_for_plan=True):
            pass
        assert not told
        assert not caplog.records
        pool.free(held)


@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("limit", [None, "64MiB"])
def test_a_request_that_can_never_succeed_tells_its_story(tmp_path, caplog, pooling, limit):
    config = SmartPoolConfig(
        max_bytes=limit, enable_advanced_pooling=pooling, out_of_memory_dump=str(tmp_path)
    )
    with SmartPool("model:96MiB" if limit else "model:64MiB", config) as pool:
        told, asked = [], []
        pool.hooks.on_out_of_memory(told.append)
        pool.add_out_of_memory_callback(asked.append)
        held = pool.malloc(10 * MiB)
        error = failed(pool, 65 * MiB)
        assert type(error) is RequestTooLargeError
        report = error.report
        assert (report.requested_bytes, report.live_bytes, report.code) == (
            65 * MiB,
            10 * MiB,
            REQUEST_TOO_LARGE,
        )
        assert "at most 64 MiB" in report.advice[0].text
        assert [advice.nbytes for advice in report.advice[1:]] == ([32 * MiB] if limit else [])
        assert json.loads(Path(error.dump_path).read_text())["story"]["code"] == REQUEST_TOO_LARGE
        assert told == [report]
        assert not asked
        assert len(caplog.records) == 1
        assert pool.statistics.devices[0].out_of_memory_errors == 1
        pool.free(held)


def test_what_a_callback_raises_has_the_story_as_its_cause():
    with SmartPool("model:64MiB") as pool:
        held = pool.malloc(40 * MiB)

        def broken(nbytes):
            raise KeyError(nbytes)

        def broken_with_a_cause(nbytes):
            raise KeyError(nbytes) from mistake

        mistake = ValueError("mine")
        pool.add_out_of_memory_callback(broken)
        with pytest.raises(KeyError) as caught:
            pool.malloc(30 * MiB)
        assert caught.value.args == (30 * MiB,)
        assert caught.value.__cause__.report.live_bytes == 40 * MiB
        pool.remove_out_of_memory_callback(broken)
        pool.add_out_of_memory_callback(broken_with_a_cause)
        with pytest.raises(KeyError) as caught:
            pool.malloc(30 * MiB)
        assert caught.value.__cause__ is mistake
        pool.check()
        pool.free(held)
        pool.free(pool.malloc(30 * MiB))


def test_a_callback_that_closes_the_pool_and_raises_raises_its_own():
    pool = SmartPool("model:64MiB")
    held = pool.malloc(40 * MiB)

    def closing(_):
        pool.free(held)
        pool.close()
        raise KeyError

    pool.add_out_of_memory_callback(closing)
    with pytest.raises(KeyError) as caught:
        pool.malloc(30 * MiB)
    assert caught.value.__cause__ is None


def test_without_pooling_the_story_is_told_as_well():
    with SmartPool("model:64MiB", SmartPoolConfig(enable_advanced_pooling=False)) as pool:
        held = pool.malloc(40 * MiB)
        assert failed(pool, 30 * MiB).report.live_bytes == 40 * MiB
        pool.free(held)


def test_the_error_can_be_pickled_with_its_story():
    with SmartPool("model:64MiB") as pool:
        pool.malloc(40 * MiB)
        error = failed(pool, 30 * MiB)
        again = pickle.loads(pickle.dumps(error))
        assert again.report == error.report
        assert str(again) == str(error)


def test_the_former_names_warn_and_give_the_new_ones():
    with pytest.warns(DeprecationWarning, match="OutOfMemoryReport"):
        former = out_of_memory.OutOfMemoryStory
    assert former is out_of_memory.OutOfMemoryReport
    with SmartPool("model:64MiB") as pool:
        error = failed(pool, 65 * MiB)
    with pytest.warns(DeprecationWarning, match="report"):
        assert error.story is error.report
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        out_of_memory.Nothing  # noqa: B018
