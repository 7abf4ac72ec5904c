"""The model: what calls cost, what memory they take, which addresses they give."""

import json
from collections import Counter
from pathlib import Path

import pytest

from smartpool.driver import H200, Cost, ModelDriver
from smartpool.errors import DriverOutOfMemoryError, InvalidSizeError, InvariantError, UnsupportedError

MiB = 1 << 20
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "driver_costs.json"


@pytest.fixture
def driver():
    return ModelDriver(1 << 30)


def cost(driver, call):
    """Microseconds that a call adds."""
    before = driver.seconds
    call()
    return (driver.seconds - before) * 1e6


def test_virtual_memory_costs_by_the_mapping(driver):
    base, size = driver.reserve(1 << 30), 4 * MiB
    chunks = [driver.create_chunk(size) for _ in range(4)]
    for index, chunk in enumerate(chunks):
        one = cost(driver, lambda chunk=chunk, index=index: driver.map_chunk(base + index * size, chunk))
        assert one == pytest.approx(1.9 + 4 * 0.0006)
    assert cost(driver, lambda: driver.enable_access(base, 4 * size)) == pytest.approx(
        1.1 + 4 * (29 + 4 * 0.042)
    )
    assert cost(driver, lambda: driver.enable_access(base, 4 * size)) == pytest.approx(1.1 + 4 * 0.3)
    assert cost(driver, lambda: driver.unmap(base, 4 * size)) == pytest.approx(4 * (19.5 + 4 * 0.0125))
    assert cost(driver, lambda: driver.unmap(base, 4 * size)) == 0
    assert cost(driver, lambda: driver.release_chunk(chunks[0])) == pytest.approx(14 + 4 * 0.68)


def test_raw_memory_costs_by_the_page(driver):
    small = [cost(driver, lambda: driver.allocate(500 << 10)) for _ in range(8)]
    assert small == pytest.approx([2.4 + 49 + 0.18, 2.4, 2.4, 2.4, 2.4 + 49 + 0.18, 2.4, 2.4, 2.4])
    assert cost(driver, lambda: driver.allocate(16 * MiB)) == pytest.approx(49 + 16 * 0.09)


def test_raw_memory_takes_pages(driver):
    total = driver.memory_info().total
    small = [driver.allocate(64 << 10) for _ in range(33)]
    assert total - driver.memory_info().free == 4 * MiB
    large = driver.allocate(2 * MiB + 1)
    assert total - driver.memory_info().free == 8 * MiB
    for address in (*small, large):
        driver.free(address)
    assert driver.memory_info().free == total
    driver.check()


def test_the_last_byte_can_be_had_and_no_more(driver):
    chunk = driver.create_chunk((1 << 30) - 2 * MiB)
    address = driver.allocate(MiB)
    other = driver.allocate(MiB)  # the rest of the same page
    for call in (lambda: driver.allocate(1), lambda: driver.create_chunk(2 * MiB)):
        with pytest.raises(DriverOutOfMemoryError, match="0 of 1073741824 bytes are free"):
            call()
    driver.release_chunk(chunk)
    driver.free(address)
    driver.free(other)
    driver.create_chunk(1 << 30)


def test_a_range_given_back_is_handed_out_again(driver):
    first = driver.allocate(5000)
    driver.free(first)
    assert driver.allocate(5001) == first  # the same after rounding
    base = driver.reserve(1 << 40)
    driver.unreserve(base, 1 << 40)
    assert driver.reserve(1 << 40) == base


def test_there_is_nothing_to_read(driver):
    address = driver.allocate(100)
    driver.fill(address, 1, 100, 0)
    for call in (lambda: driver.read(address, 1), lambda: driver.write(address, b"x")):
        with pytest.raises(UnsupportedError, match="cpu device"):
            call()


def test_every_call_has_a_cost(driver):
    base, chunk = driver.reserve(2 * MiB), driver.create_chunk(2 * MiB)
    address, stream, event = driver.allocate(4096), driver.create_stream(), driver.create_event()
    calls = (
        driver.memory_info,
        lambda: driver.map_chunk(base, chunk),
        lambda: driver.enable_access(base, 2 * MiB),
        lambda: driver.fill(base, 0, 64, 0),
        lambda: driver.copy(address, base, 64, 0),
        lambda: driver.record_event(event, stream),
        lambda: driver.event_done(event),
        lambda: driver.wait_event(0, event),
        lambda: driver.synchronize_event(event),
        driver.synchronize,
        lambda: driver.unmap(base, 2 * MiB),
        lambda: driver.destroy_event(event),
        lambda: driver.destroy_stream(stream),
        lambda: driver.free(address),
        lambda: driver.release_chunk(chunk),
        lambda: driver.unreserve(base, 2 * MiB),
    )
    assert all(cost(driver, call) > 0 for call in calls)
    assert driver.calls == Counter(dict.fromkeys(driver.calls, 1))


def test_costs_can_be_given():
    free_of_charge = type(H200)(
        **{name: Cost(0.0) for name in H200.__slots__ if name != "small_limit"}, small_limit=MiB
    )
    driver = ModelDriver(1 << 30, free_of_charge)
    driver.release_chunk(driver.create_chunk(2 * MiB))
    driver.memory_info()
    assert driver.seconds == 0


def test_a_device_has_memory():
    with pytest.raises(InvalidSizeError):
        ModelDriver(0)


@pytest.mark.skipif(not RESULTS.exists(), reason="no measurement to compare with")
def test_the_table_is_what_was_measured():
    """Each line within a quarter of two rounds' mean, or within 6 us where the call is short."""
    measured = json.loads(RESULTS.read_text())["results"]
    rows = {
        "create_chunk": "create",
        "map_chunk": "map",
        "enable_access": "access in one call, each",
        "unmap": "unmap in one call, each",
        "release_chunk": "release",
    }
    for size, row in measured["virtual"].items():
        for call, name in rows.items():
            modeled = getattr(H200, call).seconds(int(size) * MiB) * 1e6
            mean = (row[f"{name} first"] + row[f"{name} again"]) / 2
            assert modeled == pytest.approx(mean, rel=0.25, abs=6), (call, size)
    for name, row in measured["raw"].items():
        size, _, which = name.partition(" ")
        if which == "again" and int(size) > MiB:
            for call in ("allocate", "free"):
                modeled = getattr(H200, call).seconds(int(row["taken_each"])) * 1e6
                mean = (row[call] + measured["raw"][f"{size} first"][call]) / 2
                assert modeled == pytest.approx(mean, rel=0.25, abs=6), (call, size)


@pytest.mark.parametrize(
    ("field", "value"), [("chunk_bytes", 2 * MiB), ("large_bytes", 2 * MiB), ("capacity", 0)]
)
def test_check_finds_a_wrong_footprint(field, value):
    driver = ModelDriver(1 << 30)
    if field == "capacity":
        driver.allocate(100)
    setattr(driver._footprint, field, value)
    with pytest.raises(InvariantError):
        driver.check()


def test_it_shows_what_is_held(driver):
    driver.allocate(5 * MiB)
    assert repr(driver) == "<ModelDriver 'model:1GiB': 6291456 bytes held>"
