"""The cuda driver's own code over a fake `cuda.bindings.driver`; `tests/gpu` has the real one."""

import gc
import sys
import threading

import pytest
from fake_cuda import CUresult, FakeCuda

from smartpool.driver.cuda import Bindings, CudaDriver, bindings
from smartpool.errors import (
    DeviceNotFoundError,
    DriverError,
    DriverNotInstalledError,
    DriverOutOfMemoryError,
    DriverTooOldError,
    StreamError,
    UnsupportedError,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fake stands on the cpu device")

OTHER = 77 << 20  # a context that is not ours


@pytest.fixture
def fake():
    return FakeCuda(devices=2)


@pytest.fixture
def driver(fake):
    return CudaDriver(0, Bindings(fake, "13.4.4"))


# --- opening ---


def test_a_driver_that_is_not_there():
    fake = FakeCuda()

    def missing():
        raise RuntimeError("libcuda.so.1 not found")

    fake.cuDriverGetVersion = missing
    with pytest.raises(DriverNotInstalledError, match=r"libcuda\.so\.1 not found.*install the NVIDIA driver"):
        Bindings(fake, "13.4.4")


@pytest.mark.parametrize(("package", "version"), [("13.0.0", 12090), ("12.8.0", 11080)])
def test_a_driver_that_is_older_than_the_package(package, version):
    with pytest.raises(
        DriverTooOldError, match=rf"CUDA {version // 1000}\.\d.*cuda-python<{version // 1000 + 1}"
    ):
        Bindings(FakeCuda(version=version), package)
    assert issubclass(DriverTooOldError, DriverNotInstalledError)


@pytest.mark.parametrize(("package", "version"), [("13.4.4", 13000), ("12.8.0", 13000), ("12.8.0", 12000)])
def test_a_driver_of_the_same_or_a_newer_major_version_is_right(package, version):
    loaded = Bindings(FakeCuda(version=version), package)
    assert loaded.driver_version == (version // 1000, 0)


def test_a_driver_that_does_not_start():
    with pytest.raises(DriverNotInstalledError, match="CUDA_ERROR_NOT_INITIALIZED"):
        Bindings(FakeCuda(initial=CUresult.CUDA_ERROR_NOT_INITIALIZED), "13.0.0")


def test_no_device():
    with pytest.raises(DeviceNotFoundError, match="nvidia-smi"):
        Bindings(FakeCuda(initial=CUresult.CUDA_ERROR_NO_DEVICE), "13.0.0")


@pytest.mark.parametrize(("devices", "there"), [(1, "sees cuda:0;"), (2, "cuda:0 to cuda:1")])
def test_device_out_of_range(devices, there):
    with pytest.raises(DeviceNotFoundError, match=there):
        CudaDriver(devices, Bindings(FakeCuda(devices=devices), "13.0.0"))


def test_the_package_is_loaded_once_and_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(bindings, "Bindings", lambda *arguments: arguments)
    bindings.load.cache_clear()
    pytest.importorskip("cuda.bindings")
    assert bindings.load() is bindings.load()
    bindings.load.cache_clear()


@pytest.mark.parametrize("function", ["cuMemGetAllocationGranularity", "cuDeviceGetAttribute"])
def test_an_opening_that_fails_keeps_no_context(fake, function):
    loaded = Bindings(fake, "13.0.0")
    fake.plant(function, CUresult.CUDA_ERROR_INVALID_VALUE)
    with pytest.raises(DriverError):
        CudaDriver(0, loaded)
    assert fake.retained == [0, 0]


def test_describe(driver):
    told = driver.describe()
    assert told["name"] == "Fake"
    assert told["driver"] == "13.0"
    assert told["bindings"] == "13.4.4"
    assert told["granularity"] == 2 << 20


def test_a_device_without_virtual_memory():
    driver = CudaDriver(0, Bindings(FakeCuda(virtual=False), "13.0.0"))
    assert driver.granularity == 0
    driver.free(driver.allocate(100))
    for call in (
        lambda: driver.reserve(4096),
        lambda: driver.unreserve(0, 4096),
        lambda: driver.create_chunk(4096),
        lambda: driver.release_chunk(1),
        lambda: driver.map_chunk(0, 1),
        lambda: driver.enable_access(0, 4096),
        lambda: driver.unmap(0, 4096),
    ):
        with pytest.raises(UnsupportedError, match="cuda:0 has no virtual memory"):
            call()


# --- failures of CUDA ---


def test_every_failure_is_ours_and_changes_nothing(fake, driver):
    unit = driver.granularity
    base, bare, raw = driver.reserve(8 * unit), driver.reserve(unit), driver.allocate(4096)
    chunk, idle = driver.create_chunk(unit), driver.create_chunk(unit)
    stream, event = driver.create_stream(), driver.create_event()
    driver.map_chunk(base, chunk)
    driver.enable_access(base, unit)
    host = driver.allocate_host(4096)
    before = driver.held()
    table = {
        "cuMemGetInfo": driver.memory_info,
        "cuMemAlloc": lambda: driver.allocate(10),
        "cuMemFree": lambda: driver.free(raw),
        "cuMemAddressReserve": lambda: driver.reserve(unit),
        "cuMemAddressFree": lambda: driver.unreserve(bare, unit),
        "cuMemCreate": lambda: driver.create_chunk(unit),
        "cuMemRelease": lambda: driver.release_chunk(idle),
        "cuMemMap": lambda: driver.map_chunk(base + unit, idle),
        "cuMemSetAccess": lambda: driver.enable_access(base, unit),
        "cuMemUnmap": lambda: driver.unmap(base, unit),
        "cuStreamCreate": driver.create_stream,
        "cuStreamDestroy": lambda: driver.destroy_stream(stream),
        "cuStreamSynchronize": lambda: driver.synchronize(stream),
        "cuCtxSynchronize": driver.synchronize,
        "cuEventCreate": driver.create_event,
        "cuEventSynchronize": lambda: driver.synchronize_event(event),
        "cuMemsetD8Async": lambda: driver.fill(raw, 0, 10, stream),
        "cuMemcpyDtoDAsync": lambda: driver.copy(raw + 64, raw, 10, stream),
        "cuMemHostAlloc": lambda: driver.allocate_host(10),
        "cuMemFreeHost": lambda: driver.free_host(host),
        "cuMemcpyDtoHAsync": lambda: driver.copy_to_host(host, raw, 10, stream),
        "cuMemcpyHtoDAsync": lambda: driver.copy_from_host(raw, host, 10, stream),
        "cuMemcpyDtoH": lambda: driver.read(raw, 10),
        "cuMemcpyHtoD": lambda: driver.write(raw, b"x"),
    }
    for function, call in table.items():
        for code in (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, CUresult.CUDA_ERROR_OUT_OF_MEMORY):
            fake.plant(function, code)
            with pytest.raises(DriverError) as caught:
                call()
            assert function not in fake.planted, "the function was not called"
            assert caught.value.code == code.name
            lost = code is CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
            assert ("end the process" in str(caught.value)) == lost
            ran_out = not lost and function in ("cuMemAlloc", "cuMemCreate", "cuMemHostAlloc")
            assert isinstance(caught.value, DriverOutOfMemoryError) == ran_out
            driver.check()
            assert driver.held() == before
    takes_away = {
        "cuMemFree",
        "cuMemFreeHost",
        "cuMemAddressFree",
        "cuMemRelease",
        "cuMemUnmap",
        "cuStreamDestroy",
    }
    for function in (*(table.keys() - takes_away), "cuMemUnmap"):
        table[function]()


def test_failures_of_events(fake, driver):
    """Bound when the driver is made, so planted before."""

    def broken(code):
        other = FakeCuda()
        other.cuEventQuery = other.cuEventRecord = other.cuStreamWaitEvent = lambda *_: (code,)
        other.cuEventDestroy = lambda *_: (code,)
        return CudaDriver(0, Bindings(other, "13.0.0"))

    driver = broken(CUresult.CUDA_ERROR_INVALID_HANDLE)
    event = driver.create_event()
    for call in (
        lambda: driver.event_done(event),
        lambda: driver.record_event(event, 0),
        lambda: driver.wait_event(0, event),
        lambda: driver.destroy_event(event),
    ):
        with pytest.raises(DriverError, match="destroyed, or belongs to another device"):
            call()
    with pytest.raises(DriverError, match="INVALID_HANDLE"):
        driver.destroy_event(event)  # it is still there


def test_numbers_that_the_bindings_cannot_pass_on():
    fake = FakeCuda()

    def too_large(*_):
        raise OverflowError("Python int too large to convert to C size_t")

    fake.cuMemAlloc = fake.cuMemsetD8Async = too_large
    driver = CudaDriver(0, Bindings(fake, "13.0.0"))
    with pytest.raises(DriverOutOfMemoryError):
        driver.allocate(1 << 70)
    with pytest.raises(DriverError, match="INVALID_VALUE"):
        driver.fill(-1, 0, 10, 0)


def test_a_failure_that_the_package_does_not_know():
    fake = FakeCuda()
    driver = CudaDriver(0, Bindings(fake, "13.0.0"))
    fake.plant("cuMemAlloc", 123456)
    with pytest.raises(DriverError, match="CUDA error 123456"):
        driver.allocate(1)


def test_after_a_fork_the_error_says_so():
    fake = FakeCuda()
    fake.cuCtxGetCurrent = lambda: (CUresult.CUDA_ERROR_NOT_INITIALIZED, None)
    driver = CudaDriver(0, Bindings(fake, "13.0.0"))
    for call in (lambda: driver.allocate(1), driver.synchronize, driver.memory_info, driver.create_stream):
        with pytest.raises(DriverError, match="spawn"):
            call()


def test_a_function_that_the_installed_driver_lacks():
    fake = FakeCuda()
    driver = CudaDriver(0, Bindings(fake, "13.0.0"))
    chunk = driver.create_chunk(driver.granularity)

    def missing(*_):
        raise RuntimeError('Function "cuMemRelease" not found')

    fake.cuMemRelease = missing
    with pytest.raises(DriverError, match="update the driver"):
        driver.release_chunk(chunk)
    assert driver.held()["chunks"] == 1


# --- contexts ---


def test_a_thread_without_context_gets_ours(fake, driver):
    driver.free(driver.allocate(100))
    assert fake._current() == driver.context.handle


def test_a_foreign_context_is_put_back(fake, driver):
    fake.cuCtxPushCurrent(OTHER)
    driver.free(driver.allocate(100))
    driver.memory_info()
    event = driver.create_event()
    driver.record_event(event, 0)
    driver.wait_event(0, event)
    driver.fill(driver.allocate(100), 0, 100, 0)
    assert fake._stack() == [OTHER]
    fake.plant("cuMemAlloc", CUresult.CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(DriverOutOfMemoryError):
        driver.allocate(100)
    assert fake._stack() == [OTHER]


def test_close_releases_the_context_with_the_last_thing_held(fake, driver):
    assert fake.retained == [1, 0]
    address, chunk = driver.allocate(100), driver.create_chunk(driver.granularity)
    stream, event, spare = driver.create_stream(), driver.create_event(), driver.create_event()
    driver.destroy_event(spare)
    driver.close()
    for give_back in (
        lambda: driver.free(address),
        lambda: driver.release_chunk(chunk),
        lambda: driver.destroy_stream(stream),
    ):
        assert fake.retained == [1, 0]
        give_back()
    assert fake.retained == [1, 0]
    driver.destroy_event(event)
    assert fake.retained == [0, 0]
    assert not fake.cpus[0]._queues._events, "an event was kept"
    driver.close()
    driver.synchronize()
    assert fake.retained == [0, 0]


def test_two_drivers_share_the_context(fake, driver):
    other = CudaDriver(0, driver.context.bindings)
    assert other.context.handle == driver.context.handle
    other.close()
    assert fake.retained == [1, 0]


# --- events ---


def test_events_are_recycled_when_they_are_known_to_be_done(fake, driver):
    first = driver.create_event()
    driver.destroy_event(first)
    assert driver.create_event() == first  # never recorded
    for see_it_done in (driver.event_done, driver.synchronize_event):
        driver.record_event(first, 0)
        see_it_done(first)
        driver.destroy_event(first)
        assert driver.create_event() == first
    fake.made.clear()
    driver.record_event(first, 0)
    driver.destroy_event(first)  # perhaps done, but nobody asked
    assert driver.create_event() != first
    assert "cuEventQuery" not in fake.made  # asking would invalidate a capture


def test_a_pending_event_does_not_come_back(fake, driver):
    event = driver.create_event()
    fake.cpus[0].pause()
    driver.record_event(event, 0)
    assert not driver.event_done(event)
    driver.destroy_event(event)
    assert driver.event_done(driver.create_event())
    fake.cpus[0].resume()


def test_a_bounded_set_is_kept(fake, driver):
    events = [driver.create_event() for _ in range(300)]
    for event in events:
        driver.destroy_event(event)
    assert len(fake.cpus[0]._queues._events) == 256
    assert driver.calls["create_event"] == driver.calls["destroy_event"] == 300


# --- streams ---


class Named:
    def __init__(self, answer):
        self.answer = answer

    def __cuda_stream__(self):
        return self.answer


def test_default_streams(driver):
    assert driver.stream(None) == driver.stream(0) == driver.stream(1) == driver.stream(Named((0, 1))) == 0
    token = driver.stream(2)
    assert token == driver.stream(Named((0, 2))) == driver.stream(token)
    assert token & 7 == 2


def test_the_per_thread_stream_is_one_a_thread(driver):
    mine, theirs, handles = driver.stream(2), [], []

    def work():
        theirs.append(driver.stream(2))
        handles.extend(int(driver.stream_handle(token)) for token in (theirs[0], mine, 2, 1, 0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert theirs[0] != mine
    assert handles == [2, 0, 2, 0, 0]  # another thread's is reached by the legacy stream
    assert int(driver.stream_handle(mine)) == 2
    assert int(driver.stream_handle(theirs[0])) == 0
    event = driver.create_event()
    for stream in (mine, theirs[0]):
        driver.record_event(event, stream)
        driver.wait_event(stream, event)
        driver.synchronize(stream)


def test_streams_of_other_libraries_are_asked_once_for_their_context(fake, driver):
    handle = fake.cpus[0].create_stream()
    # real handles are pointers; the fake's are small numbers, which are refused unasked
    with pytest.raises(StreamError, match="no stream has that handle"):
        driver.stream(handle)
    asked = []
    fake.cuStreamGetCtx = lambda stream: asked.append(int(stream)) or (CUresult(0), fake_context(driver))
    token = driver.stream(0x7F0000001000)
    for _ in range(3):
        assert driver.stream(0x7F0000001000) == driver.stream(Named((0, 0x7F0000001000))) == token
        assert driver.stream(token) == token
        assert int(driver.stream_handle(token)) == int(driver.stream_handle(0x7F0000001000)) == 0x7F0000001000
    assert asked == [0x7F0000001000]
    assert driver.native_stream(token) is None


def test_a_handle_that_the_driver_gives_again_is_another_stream(fake, driver):
    fake.cuStreamGetCtx = lambda stream: (CUresult(0), fake_context(driver))
    before = driver.stream(0x7F0000001000)
    fake.ids[0x7F0000001000] = 99
    after = driver.stream(0x7F0000001000)
    assert after != before
    assert driver.stream(before) == before  # what the pool has noted is still the old one
    fake.plant("cuStreamGetId", CUresult.CUDA_ERROR_INVALID_HANDLE)
    driver._streams._ask_id = fake.cuStreamGetId
    with pytest.raises(StreamError, match="INVALID_HANDLE"):
        driver.stream(0x7F0000002000)


def test_streams_and_threads_that_are_gone_leave_nothing(fake, driver):
    fake.cuStreamGetCtx = lambda stream: (CUresult(0), fake_context(driver))
    table = driver._streams
    for number in range(500):
        fake.ids[0x7F0000001000] = number
        latest = driver.stream(0x7F0000001000)
    assert len(table.known) < 10
    assert int(driver.stream_handle(latest)) == 0x7F0000001000
    gone = (1 << 56 | 3) << 3 | 3
    assert driver.stream(gone) == gone
    assert not driver.is_capturing(gone)
    with pytest.raises(StreamError, match="was destroyed"):
        driver.fill(1 << 40, 0, 1, gone)
    tokens = []
    for _ in range(100):
        thread = threading.Thread(target=lambda: tokens.append(driver.stream(2)))
        thread.start()
        thread.join()
    gc.collect()
    assert len(set(tokens)) == 100
    assert len(table.lasting) < 10
    assert {driver.stream(token) for token in tokens} == set(tokens)
    assert {int(driver.stream_handle(token)) for token in tokens} == {0}  # the legacy default stream
    for number in (3, 10, 11, 4095, 1 << 64, -5):
        with pytest.raises(StreamError, match="no stream has that handle"):
            driver.stream(number)


def test_a_stream_that_is_being_captured_is_not_asked_for_its_id(fake, driver):
    """It would ruin the capture. What it was last, it still is; what was never seen gets a name for now."""
    fake.cuStreamGetCtx = lambda stream: (CUresult(0), fake_context(driver))
    before = driver.stream(0x7F0000001000)
    active = fake.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
    fake.cuStreamIsCapturing = lambda stream: (CUresult(0), active)
    driver._streams._ask_id = lambda stream: pytest.fail("asked")
    assert driver.stream(0x7F0000001000) == before
    joined = driver.stream(0x7F0000002000)
    assert joined == driver.stream(0x7F0000002000) == driver.stream(joined)
    assert int(driver.stream_handle(joined)) == 0x7F0000002000
    assert driver.is_capturing(joined) == fake.capture_id
    fake.plant("cuStreamGetCaptureInfo", CUresult.CUDA_ERROR_INVALID_VALUE)
    assert driver.is_capturing(joined)  # whatever its name


def test_what_others_may_be_told(fake, driver):
    fake.cuStreamGetCtx = lambda stream: (CUresult(0), fake_context(driver))
    own, kept = driver.create_stream(), driver.keep_stream(0x7F0000003000)
    assert kept == driver.stream(kept) == 0x7F0000003000
    assert [driver.native_stream(stream) for stream in (0, own, kept)] == [0, own, kept]
    assert driver.native_stream(driver.stream(2)) is None
    assert driver.keep_stream(own) == own
    assert driver.keep_stream(None) == 0


def fake_context(driver):
    return type(driver.context.raw)(driver.context.handle)


def test_streams_of_green_contexts_are_those_of_their_device(fake, driver):
    fake.cuStreamGetCtx = lambda stream: (CUresult(0), type(driver.context.raw)(0xC0FFEE))
    fake.cuStreamGetGreenCtx = lambda stream: (CUresult(0), 0xBEE if int(stream) != 0x7F0000003000 else 0)
    fake.cuStreamGetDevice = lambda stream: (CUresult(0), int(int(stream) == 0x7F0000002000))
    token = driver.stream(0x7F0000001000)
    assert driver.stream(token) == token
    for handle in (
        0x7F0000002000,
        0x7F0000003000,
    ):  # of another device, and of another context that is not green
        with pytest.raises(StreamError, match="another device"):
            driver.stream(handle)
    fake.cuStreamGetDevice = lambda stream: (CUresult.CUDA_ERROR_INVALID_HANDLE,)
    with pytest.raises(StreamError, match="another device"):
        driver.stream(0x7F0000004000)


def test_streams_of_other_devices_are_refused(fake, driver):
    fake.cuStreamGetCtx = lambda stream: (CUresult(0), fake_context(CudaDriver(1, driver.context.bindings)))
    with pytest.raises(StreamError, match="of another device"):
        driver.stream(0x7F0000001000)
    fake.cuStreamGetCtx = lambda stream: (CUresult.CUDA_ERROR_INVALID_HANDLE, None)
    with pytest.raises(StreamError, match="INVALID_HANDLE"):
        driver.stream(0x7F0000001000)


@pytest.mark.parametrize("answer", [None, 5, (0,), (0, "x"), (0, 1, 2), ("0", 3)])
def test_answers_that_name_no_stream(driver, answer):
    with pytest.raises(StreamError, match="__cuda_stream__"):
        driver.stream(Named(answer))


def test_only_our_streams_are_destroyed(driver):
    for wrong in (0, 1, 2, 0x7F0000001000):
        with pytest.raises(StreamError, match="create_stream"):
            driver.destroy_stream(wrong)


# --- capture ---


def test_capture(fake, driver):
    assert driver.is_capturing(0) == 0
    assert "cuStreamIsCapturing" not in fake.made  # the question would ruin the capture of a blocking stream
    with driver.beside_capture():
        assert fake.mode == "CU_STREAM_CAPTURE_MODE_RELAXED"
    assert fake.mode == "GLOBAL"


# --- streams that may be gone ---


def test_an_event_behind_a_stream_that_may_be_gone_stands_for_the_whole_context(driver, fake):
    foreign = 0x7F0000001000
    fake.cuStreamGetCtx = lambda stream: (CUresult(0), fake_context(driver))
    fake._stream = lambda stream: 0
    assert driver.stream(foreign) == (1 << 56 | foreign) << 3 | 3
    event, recorded = driver.create_event(), []
    everything = driver._events._record_context
    driver._events._record_context = lambda *values: recorded.append(values) or everything(*values)
    driver.record_event(event, foreign)
    assert [(int(context), int(raw)) for context, raw in recorded] == [(driver.context.handle, event)]
    assert driver.event_done(event)
    assert driver.keep_stream(foreign) == foreign  # the caller's word that it lasts
    driver.record_event(event, foreign)
    assert len(recorded) == 1


def test_a_driver_that_has_no_events_of_contexts_waits_instead(driver, fake):
    foreign = 0x7F0000001000

    def missing(context, event):
        raise RuntimeError('Function "cuCtxRecordEvent" not found')

    driver._events._record_context = missing
    event = driver.create_event()
    for _ in range(2):
        fake.made.clear()
        driver.record_event(event, foreign)
        assert "cuCtxSynchronize" in fake.made
        assert driver.event_done(event)


def test_our_own_streams_last_until_they_are_destroyed(driver):
    stream = driver.create_stream()
    assert stream in driver._streams.lasting
    driver.destroy_stream(stream)
    assert stream not in driver._streams.lasting
