"""`check_stream_order`: every forgotten wait is found, by events for certain, by bytes with some luck."""

from __future__ import annotations

import pytest
from stream_toys import STREAM_PLANTED, StreamToy
from waiting import PATIENCE_S

from smartpool.driver.cpu import CpuDriver
from smartpool.errors import ConfigurationError
from smartpool.testing import Invariant, ViolationError, check_stream_order

TOY = {
    "capacity": 4096,
    "alignment": 512,
    "zero_size": "distinct",
    "record_stream": "record_stream",
    "close": "close",
}
SHOWN_BY_BYTES = STREAM_PLANTED[:3]


def host():
    return CpuDriver(capacity=1 << 20)


def found(factory, **options):
    with pytest.raises(ViolationError) as caught:
        check_stream_order(factory, **TOY, **options)
    return caught.value


@pytest.mark.parametrize("bug", STREAM_PLANTED)
def test_every_forgotten_wait_is_found_and_its_program_shows_it(bug):
    error = found(bug, driver="model:64MiB")
    assert error.invariant is Invariant.STREAM_ORDER
    assert len(error.program) <= 12
    with pytest.raises(AssertionError):
        exec(error.program.source, {})
    if bug is not STREAM_PLANTED[-1]:  # how a sound pool closes is its own business
        exec(error.program.source.replace(bug.__name__, "StreamToy"), {})


@pytest.mark.parametrize("bug", SHOWN_BY_BYTES)
def test_bytes_show_it_too(bug):
    error = found(bug, driver=host, by="bytes")
    assert error.invariant is Invariant.STREAM_ORDER
    assert "saw" in error.detail
    with pytest.raises(AssertionError):
        exec(error.program.source, dict(error.program.names))


@pytest.mark.parametrize(("driver", "by"), [("model:64MiB", "events"), (host, "events"), (host, "bytes")])
def test_a_pool_that_waits_passes(driver, by):
    report = check_stream_order(StreamToy, driver=driver, by=by, examples=40, seconds=PATIENCE_S, **TOY)
    assert report.checked[Invariant.STREAM_ORDER] > 200


def test_a_wrong_way_of_looking_is_named():
    with pytest.raises(ConfigurationError, match="events, bytes"):
        check_stream_order(StreamToy, driver="model:64MiB", by="luck")
