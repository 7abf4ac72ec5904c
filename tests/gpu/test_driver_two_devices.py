"""Two devices: whose memory is whose."""

import pytest

from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverError, DriverNotInstalledError, StreamError

try:
    KEEPERS = [open_driver("cuda:0"), open_driver("cuda:1")]
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(f"two devices are needed: {error}", allow_module_level=True)


@pytest.fixture
def pair():
    drivers = open_driver("cuda:0"), open_driver("cuda:1")
    yield drivers
    for driver in drivers:
        driver.synchronize()
        driver.check()
        assert not any(driver.held().values())
        driver.close()


def test_each_device_keeps_its_own(pair):
    first, second = pair
    size = 64 << 20
    before = [driver.memory_info().free for driver in pair]
    chunk, address = second.create_chunk(size), second.allocate(size)
    assert first.memory_info().free == before[0]
    assert before[1] - second.memory_info().free == 2 * size
    with pytest.raises(DriverError):
        first.free(address)
    with pytest.raises(DriverError):
        first.release_chunk(chunk)
    stream = second.create_stream()
    with pytest.raises(StreamError, match="another device"):
        first.stream(stream)
    second.destroy_stream(stream)
    second.release_chunk(chunk)
    second.free(address)


def test_calls_to_both_leave_the_current_device(pair):
    torch = pytest.importorskip("torch")
    first, second = pair
    torch.cuda.set_device(1)
    try:
        held = [(driver, driver.allocate(1 << 20)) for driver in (first, second, first)]
        for driver, address in held:
            driver.fill(address, driver.ordinal + 1, 1 << 20, 0)
            assert driver.read(address, 1) == bytes((driver.ordinal + 1,))
            event = driver.create_event()
            driver.record_event(event, 0)
            driver.wait_event(0, event)
            driver.synchronize_event(event)
            driver.destroy_event(event)
            assert torch.cuda.current_device() == 1
            assert torch.empty(1, device="cuda").device.index == 1
        for driver, address in held:
            driver.free(address)
    finally:
        torch.cuda.set_device(0)
