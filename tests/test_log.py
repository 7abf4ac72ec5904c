"""One logger: what it tells, at which level, and what it never tells."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from smartpool import KiB, MiB, OutOfMemoryError, OverrunError, SmartPool, SmartPoolConfig
from smartpool.debug_options import DebugOptions


def told(caplog):
    return {(record.levelname, record.name) for record in caplog.records}


def test_requests_and_frees_are_never_told(caplog):
    with SmartPool("model:1GiB", SmartPoolConfig(track=True, record=True)) as pool:
        pool.free(pool.malloc(1000))
        with caplog.at_level(logging.DEBUG, logger="smartpool"):
            caplog.clear()
            for _ in range(100):
                pool.free(pool.malloc(1000))
            assert not caplog.records


def test_growth_and_giving_back_are_details(caplog):
    with SmartPool("model:1GiB", SmartPoolConfig(enable_auto_defragmentation=False)) as pool:
        with caplog.at_level(logging.INFO, logger="smartpool"):
            pool.free(pool.malloc(40 * MiB))
            pool.trim(wait=True)
        assert not caplog.records
        with caplog.at_level(logging.DEBUG, logger="smartpool"):
            pool.free(pool.malloc(40 * MiB))
            pool.trim(wait=True)
        assert told(caplog) == {("DEBUG", "smartpool")}


def test_what_the_optimizer_gave_back_is_information(caplog):
    config = SmartPoolConfig(optimization_interval=3600, memory_pressure_threshold=0.01)
    with caplog.at_level(logging.INFO, logger="smartpool"), SmartPool("model:1GiB", config) as pool:
        pool.free(pool.malloc(400 * MiB))
        pool._maintenance.background_pass()
    assert any("400 MiB back under memory pressure" in record.message for record in caplog.records)
    assert ("INFO", "smartpool") in told(caplog)


def test_out_of_memory_is_a_warning_and_overwritten_memory_an_error(caplog):
    with SmartPool("model:64MiB") as pool:
        pool.malloc(40 * MiB)
        with pytest.raises(OutOfMemoryError):
            pool.malloc(40 * MiB)
    assert told(caplog) == {("WARNING", "smartpool")}
    caplog.clear()
    with SmartPool("cpu", SmartPoolConfig(debug=DebugOptions())) as pool:
        block = pool.malloc(KiB)
        pool.managers[0].driver.write(block + KiB, b"\0")
        with pytest.raises(OverrunError):
            pool.free(block)
    assert told(caplog) == {("ERROR", "smartpool")}


def test_nothing_is_printed_by_a_program_that_configures_no_logging():
    code = (
        "import smartpool\n"
        "pool = smartpool.SmartPool('model:64MiB')\n"
        "pool.hooks.on_allocate(lambda event: 1 / 0)\n"
        "pool.malloc(40 << 20)\n"
        "try:\n    pool.malloc(40 << 20)\n"
        "except MemoryError:\n    pass\n"
        "pool.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
