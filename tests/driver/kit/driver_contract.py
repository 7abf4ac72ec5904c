"""The contract of the driver protocol: every driver passes these tests, the real device included.

A test class derives from `DriverContract` and gives a fixture `driver`. Whatever a test leaves
held fails it: `balanced` compares before and after.
"""

import functools
import itertools
import threading

import pytest

from smartpool.driver import Driver, MemoryInfo
from smartpool.errors import DriverError, DriverOutOfMemoryError, StreamError


def readable(driver):
    return driver.dl_device[0] != 12


def of_the_rules(test):
    """Mark a test of what the protocol refuses: a device that is the only judge has words of its own."""

    @functools.wraps(test)
    def where_we_refuse(self, *arguments, **named):
        if not self.refuses:
            pytest.skip("the device is the judge")
        test(self, *arguments, **named)

    return where_we_refuse


class DriverContract:
    refuses = True  # whether what breaks the rules is refused before the device is asked

    @pytest.fixture(autouse=True)
    def balanced(self, driver):
        before = driver.held()
        yield
        driver.synchronize()
        driver.check()
        assert driver.held() == before

    @pytest.fixture
    def unit(self, driver):
        return driver.granularity

    @pytest.fixture
    def base(self, driver, unit):
        """A reservation of 16 units; the test leaves it empty."""
        address = driver.reserve(16 * unit)
        yield address
        driver.unreserve(address, 16 * unit)

    @pytest.fixture
    def chunk(self, driver, unit):
        """A chunk of 2 units; the test leaves it unmapped."""
        handle = driver.create_chunk(2 * unit)
        yield handle
        driver.release_chunk(handle)

    # --- what it says of itself ---

    def test_is_a_driver(self, driver):
        assert isinstance(driver, Driver)
        assert driver.default_stream == 0
        assert driver.granularity > 0
        assert driver.granularity & (driver.granularity - 1) == 0
        assert driver.name
        assert len(driver.dl_device) == 2

    def test_counts_calls_and_time(self, driver):
        calls, seconds = driver.calls["allocate"], driver.seconds
        driver.free(driver.allocate(1000))
        assert driver.calls["allocate"] == calls + 1
        assert driver.seconds > seconds

    # --- raw memory ---

    def test_raw_memory_is_aligned_and_disjoint(self, driver):
        sizes = [1, 511, 512, 513, 4096, 100_000, 3 << 20]
        held = sorted((driver.allocate(size), size) for size in sizes)
        assert all(address > 0 and address % 512 == 0 for address, _ in held)
        for (address, size), (following, _) in itertools.pairwise(held):
            assert address + size <= following
        for address, _ in held:
            driver.free(address)

    @pytest.mark.parametrize("size", [0, -1, -(1 << 40)])
    def test_raw_sizes_that_are_not_positive_are_refused(self, driver, size):
        with pytest.raises(DriverError, match="at least 1 byte"):
            driver.allocate(size)

    def test_more_raw_memory_than_there_is(self, driver):
        with pytest.raises(DriverOutOfMemoryError) as caught:
            driver.allocate(driver.memory_info().total + 1)
        assert isinstance(caught.value, MemoryError)
        assert caught.value.call == "allocate"
        assert "size" in caught.value.arguments
        driver.free(driver.allocate(1 << 20))

    @pytest.mark.parametrize("size", [1 << 62, 1 << 63, 1 << 64, 1 << 70, (1 << 64) + 4096])
    def test_sizes_beyond_any_machine(self, driver, size):
        with pytest.raises(DriverOutOfMemoryError):
            driver.allocate(size)
        with pytest.raises(DriverOutOfMemoryError):
            driver.create_chunk(size // driver.granularity * driver.granularity)
        with pytest.raises(DriverError):
            driver.reserve(size // driver.granularity * driver.granularity)
        driver.free(driver.allocate(4096))

    def test_free_takes_only_what_allocate_gave_and_once(self, driver):
        address = driver.allocate(4096)
        for wrong in (address + 512, 0, 512):
            with pytest.raises(DriverError, match="free"):
                driver.free(wrong)
        driver.free(address)
        with pytest.raises(DriverError, match="free"):
            driver.free(address)

    # --- memory information ---

    def test_memory_info_follows_chunks(self, driver, unit):
        before = driver.memory_info()
        assert isinstance(before, MemoryInfo)
        assert 0 < before.free <= before.total
        chunk = driver.create_chunk(8 * unit)
        assert driver.memory_info().total == before.total
        assert before.free - driver.memory_info().free == 8 * unit
        driver.release_chunk(chunk)
        assert driver.memory_info() == before

    # --- reservations ---

    def test_reservations_are_aligned_and_need_no_memory(self, driver, unit):
        size = 4 * driver.memory_info().total // unit * unit
        first, second = driver.reserve(size), driver.reserve(unit)
        assert first % unit == second % unit == 0
        assert second + unit <= first or first + size <= second
        driver.unreserve(first, size)
        driver.unreserve(second, unit)

    @of_the_rules
    def test_reserved_sizes_are_granular(self, driver, unit):
        for size in (0, -unit, unit - 1, unit + 512):
            with pytest.raises(DriverError, match="multiple"):
                driver.reserve(size)

    @of_the_rules
    def test_a_reservation_goes_whole_once_and_empty(self, driver, unit, chunk):
        base = driver.reserve(4 * unit)
        for address, size in (
            (base, unit),
            (base + unit, 3 * unit),
            (base, 5 * unit),
            (base - unit, 4 * unit),
        ):
            with pytest.raises(DriverError, match="unreserve"):
                driver.unreserve(address, size)
        driver.map_chunk(base, chunk)
        with pytest.raises(DriverError, match="unmap everything"):
            driver.unreserve(base, 4 * unit)
        driver.unmap(base, 4 * unit)
        driver.unreserve(base, 4 * unit)
        with pytest.raises(DriverError, match="unreserve"):
            driver.unreserve(base, 4 * unit)

    # --- chunks ---

    @of_the_rules
    def test_chunk_sizes_are_granular(self, driver, unit):
        for size in (0, -unit, unit - 1, unit + 512):
            with pytest.raises(DriverError, match="multiple"):
                driver.create_chunk(size)

    def test_more_chunk_than_there_is(self, driver, unit):
        size = (driver.memory_info().total // unit + 1) * unit
        with pytest.raises(DriverOutOfMemoryError) as caught:
            driver.create_chunk(size)
        assert caught.value.call == "create_chunk"
        driver.release_chunk(driver.create_chunk(unit))

    @of_the_rules
    def test_a_chunk_is_released_once_and_unmapped(self, driver, unit, base):
        chunk = driver.create_chunk(unit)
        driver.map_chunk(base, chunk)
        driver.map_chunk(base + unit, chunk)
        with pytest.raises(DriverError, match="still mapped at 2"):
            driver.release_chunk(chunk)
        driver.unmap(base, unit)
        with pytest.raises(DriverError, match="still mapped at 1"):
            driver.release_chunk(chunk)
        driver.unmap(base + unit, unit)
        driver.release_chunk(chunk)
        with pytest.raises(DriverError, match="no such chunk"):
            driver.release_chunk(chunk)

    # --- mapping ---

    @of_the_rules
    def test_map_is_whole_inside_one_reservation_and_where_nothing_is(self, driver, unit, base, chunk):
        with pytest.raises(DriverError, match="multiple"):
            driver.map_chunk(base + unit // 2, chunk)
        for outside in (base - unit, base + 15 * unit, base + 16 * unit):
            with pytest.raises(DriverError, match="inside one reservation"):
                driver.map_chunk(outside, chunk)
        with pytest.raises(DriverError, match="no such chunk"):
            driver.map_chunk(base, 3)
        driver.map_chunk(base + 2 * unit, chunk)
        other = driver.create_chunk(2 * unit)
        for taken in (base + unit, base + 2 * unit, base + 3 * unit):
            with pytest.raises(DriverError, match="something is mapped"):
                driver.map_chunk(taken, other)
        driver.map_chunk(base, other)
        driver.map_chunk(base + 4 * unit, other)
        driver.unmap(base, 16 * unit)
        driver.release_chunk(other)

    @of_the_rules
    def test_access_needs_a_range_mapped_all_over(self, driver, unit, base, chunk):
        driver.map_chunk(base, chunk)
        driver.map_chunk(base + 3 * unit, chunk)
        for address, size in ((base, 3 * unit), (base, 5 * unit), (base + 2 * unit, unit), (base, unit)):
            with pytest.raises(DriverError, match="enable_access"):
                driver.enable_access(address, size)
        for address, size in (
            (base, 0),
            (base + 512, 2 * unit),
            (base, 2 * unit - 512),
            (base - unit, 3 * unit),
        ):
            with pytest.raises(DriverError, match="enable_access"):
                driver.enable_access(address, size)
        driver.enable_access(base, 2 * unit)
        driver.map_chunk(base + 5 * unit, chunk)
        driver.enable_access(base + 3 * unit, 4 * unit)
        driver.unmap(base, 16 * unit)

    @of_the_rules
    def test_memory_is_touched_only_with_access(self, driver, unit, base, chunk):
        def touch():
            driver.fill(base, 1, 2 * unit, 0)

        with pytest.raises(DriverError, match="fill"):
            touch()
        driver.map_chunk(base, chunk)
        with pytest.raises(DriverError, match="fill"):
            touch()
        driver.enable_access(base, 2 * unit)
        touch()
        driver.synchronize()
        driver.unmap(base, 2 * unit)
        with pytest.raises(DriverError, match="fill"):
            touch()
        driver.map_chunk(base, chunk)
        with pytest.raises(DriverError, match="fill"):
            touch()  # access is to be enabled after every map
        driver.enable_access(base, 2 * unit)
        touch()
        outside = base + 4 * unit
        for destination, source in ((base, outside), (outside, base), (base + unit, base - unit)):
            with pytest.raises(DriverError, match="copy"):
                driver.copy(destination, source, unit, 0)
        for hole in ((base - unit, 2 * unit), (base + unit, 2 * unit), (base, 3 * unit)):
            with pytest.raises(DriverError, match="fill"):
                driver.fill(hole[0], 1, hole[1], 0)
        driver.synchronize()
        driver.unmap(base, 2 * unit)

    def test_unmap_allows_holes(self, driver, unit, base, chunk):
        driver.unmap(base, 16 * unit)  # nothing but a hole
        for _ in range(2):
            driver.map_chunk(base, chunk)
            driver.map_chunk(base + 4 * unit, chunk)
            driver.unmap(base, 16 * unit)

    def test_things_go_back_once(self, driver, unit):
        base, chunk = driver.reserve(4 * unit), driver.create_chunk(unit)
        driver.map_chunk(base, chunk)
        driver.enable_access(base, unit)
        driver.unmap(base, unit)
        driver.release_chunk(chunk)
        with pytest.raises(DriverError, match="no such chunk"):
            driver.release_chunk(chunk)
        with pytest.raises(DriverError, match="no such chunk"):
            driver.map_chunk(base, chunk)
        driver.unreserve(base, 4 * unit)
        with pytest.raises(DriverError, match="once"):
            driver.unreserve(base, 4 * unit)

    @of_the_rules
    def test_unmap_takes_whole_mappings(self, driver, unit, base, chunk):
        driver.map_chunk(base, chunk)
        driver.map_chunk(base + 4 * unit, chunk)
        cuts = ((base, unit), (base + unit, unit), (base + unit, 15 * unit), (base + 3 * unit, 2 * unit))
        for address, size in cuts:
            with pytest.raises(DriverError, match="sticks out"):
                driver.unmap(address, size)
        for address, size in ((base, 0), (base + 512, unit), (base, 17 * unit), (base - unit, 3 * unit)):
            with pytest.raises(DriverError, match="unmap"):
                driver.unmap(address, size)
        driver.unmap(base, 16 * unit)
        driver.map_chunk(base, chunk)
        driver.unmap(base, 2 * unit)

    def test_contents_follow_the_chunk(self, driver, unit, base, chunk):
        if not readable(driver):
            pytest.skip("no contents")
        for address in (base, base + 2 * unit):
            driver.map_chunk(address, chunk)
        driver.enable_access(base, 4 * unit)
        driver.write(base + unit - 3, b"abcdef")
        assert driver.read(base + 3 * unit - 3, 6) == b"abcdef"
        driver.fill(base + 2 * unit, 7, unit, 0)
        assert driver.read(base + unit - 3, 6) == b"\x07\x07\x07def"
        driver.unmap(base, 4 * unit)
        driver.map_chunk(base + 8 * unit, chunk)
        driver.enable_access(base + 8 * unit, 2 * unit)
        assert driver.read(base + 9 * unit - 3, 6) == b"\x07\x07\x07def"
        driver.unmap(base + 8 * unit, 2 * unit)

    # --- streams ---

    def test_streams_by_name(self, driver):
        assert driver.stream(None) == driver.stream(0) == 0
        stream = driver.create_stream()
        assert stream != 0
        assert driver.stream(stream) == stream
        driver.synchronize(stream)
        driver.destroy_stream(stream)
        for wrong in ("stream", 1.5, True, -1, 77, object(), b""):
            with pytest.raises(StreamError):
                driver.stream(wrong)

    def test_only_our_streams_are_destroyed(self, driver):
        for wrong in (0, 77):
            with pytest.raises(StreamError):
                driver.destroy_stream(wrong)
        stream = driver.create_stream()
        driver.destroy_stream(stream)
        with pytest.raises(StreamError):
            driver.destroy_stream(stream)

    # --- events ---

    def test_an_event_is_done_until_it_is_recorded(self, driver):
        event, stream = driver.create_event(), driver.create_stream()
        assert driver.event_done(event)
        driver.record_event(event, stream)
        driver.synchronize_event(event)
        assert driver.event_done(event)
        driver.wait_event(0, event)
        driver.synchronize()
        driver.destroy_event(event)
        driver.destroy_stream(stream)

    def test_unknown_events_are_refused(self, driver):
        event = driver.create_event()
        driver.destroy_event(event)
        for call in (
            lambda: driver.event_done(event),
            lambda: driver.destroy_event(event),
            lambda: driver.record_event(event, 0),
            lambda: driver.wait_event(0, event),
            lambda: driver.synchronize_event(event),
        ):
            with pytest.raises(DriverError, match="no such event"):
                call()

    def test_events_come_back_as_new(self, driver):
        for _ in range(3):
            events = [driver.create_event() for _ in range(20)]
            assert len(set(events)) == 20
            for event in events:
                assert driver.event_done(event)
                driver.record_event(event, 0)
            for event in events:
                driver.destroy_event(event)

    # --- data ---

    def test_fill_and_copy(self, driver):
        first, second, stream = driver.allocate(4096), driver.allocate(4096), driver.create_stream()
        driver.fill(first, 0, 4096, stream)
        driver.fill(first, 255, 100, stream)
        driver.copy(second, first, 200, stream)
        driver.synchronize(stream)
        if readable(driver):
            assert driver.read(second, 200) == b"\xff" * 100 + b"\0" * 100
        for value in (-1, 256):
            with pytest.raises(DriverError, match=r"0\.\.255"):
                driver.fill(first, value, 1, 0)
        with pytest.raises(DriverError, match="overlap"):
            driver.copy(first, first + 10, 20, 0)
        driver.free(first)
        driver.free(second)
        driver.destroy_stream(stream)

    def test_memory_of_the_host(self, driver):
        here, there, stream = driver.allocate(4096), driver.allocate_host(4096), driver.create_stream()
        assert driver.held()["host_bytes"] == 4096
        driver.fill(here, 7, 4096, stream)
        driver.copy_to_host(there + 96, here, 4000, stream)
        driver.fill(here, 0, 4096, stream)
        driver.copy_from_host(here + 1, there + 96, 10, stream)
        driver.synchronize(stream)
        if readable(driver):
            assert driver.read(here, 12) == b"\0" + b"\7" * 10 + b"\0"
        driver.free_host(there)
        assert driver.held()["host_bytes"] == 0
        with pytest.raises(DriverError, match="free_host"):
            driver.free_host(there)
        with pytest.raises(DriverError, match="at least 1 byte"):
            driver.allocate_host(0)
        driver.free(here)
        driver.destroy_stream(stream)

    @of_the_rules
    def test_no_bytes_are_refused(self, driver):
        address = driver.allocate(4096)
        for size in (0, -5):
            with pytest.raises(DriverError, match="at least 1 byte"):
                driver.fill(address, 1, size, 0)
        driver.free(address)

    # --- threads ---

    def test_a_fresh_thread_needs_no_set_up(self, driver, unit):
        failures = []

        def work():
            try:
                address, base = driver.allocate(4096), driver.reserve(unit)
                chunk, event, stream = (
                    driver.create_chunk(unit),
                    driver.create_event(),
                    driver.create_stream(),
                )
                driver.map_chunk(base, chunk)
                driver.enable_access(base, unit)
                for at in (0, stream):
                    driver.fill(address, 1, 4096, at)
                    driver.copy(base, address, 4096, at)
                    driver.record_event(event, at)
                    driver.wait_event(0, event)
                driver.synchronize_event(event)
                driver.synchronize()
                driver.memory_info()
                driver.unmap(base, unit)
                driver.release_chunk(chunk)
                driver.unreserve(base, unit)
                driver.free(address)
                driver.destroy_event(event)
                driver.destroy_stream(stream)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    # --- life ---

    def test_closing_leaves_what_callers_hold(self, driver, unit):
        """Last in the contract: it closes the driver."""
        address, base, chunk = driver.allocate(4096), driver.reserve(unit), driver.create_chunk(unit)
        event, stream = driver.create_event(), driver.create_stream()
        driver.map_chunk(base, chunk)
        driver.enable_access(base, unit)
        driver.close()
        driver.close()
        for call in (
            lambda: driver.allocate(1),
            lambda: driver.reserve(unit),
            lambda: driver.create_chunk(unit),
            driver.create_stream,
            driver.create_event,
        ):
            with pytest.raises(DriverError, match="CLOSED"):
                call()
        driver.fill(base, 3, unit, stream)
        driver.fill(address, 3, 4096, stream)
        driver.record_event(event, stream)
        driver.synchronize_event(event)
        if readable(driver):
            assert driver.read(base, 2) == driver.read(address, 2) == b"\x03\x03"
        driver.synchronize()
        driver.check()
        driver.unmap(base, unit)
        driver.unreserve(base, unit)
        driver.release_chunk(chunk)
        driver.free(address)
        driver.destroy_stream(stream)
        driver.destroy_event(event)
