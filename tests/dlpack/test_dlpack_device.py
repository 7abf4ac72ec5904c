"""The arguments of ``__dlpack__``, by the rules of the array API standard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool import SmartPool
from smartpool.dlpack import DeviceType, consumer_stream, outstanding
from smartpool.errors import DLPackError, InvalidRequestError, StreamError
from smartpool.values import shown

ON_CUDA = [DeviceType.CUDA, DeviceType.CUDA_MANAGED]
ON_HOST = [DeviceType.CPU, DeviceType.CUDA_HOST]


@pytest.mark.parametrize("device", ON_CUDA)
@pytest.mark.parametrize(("given_stream", "handle"), [(None, 0), (1, 0), (2, 2), (-1, None), (3, 3)])
def test_streams_on_cuda(device: DeviceType, given_stream: int | None, handle: int | None) -> None:
    assert consumer_stream(device, given_stream) == handle


@given(st.sampled_from(ON_CUDA), st.integers(3, 2**64 - 1))
def test_handles_pass(device: DeviceType, handle: int) -> None:
    assert consumer_stream(device, handle) == handle


@pytest.mark.parametrize("device", ON_CUDA)
@pytest.mark.parametrize(
    "stream",
    [0, -2, -(1 << 70), True, False, 1.0, "1", object()],
    ids=lambda value: repr(value).split(" at ")[0],
)
def test_what_is_no_stream_on_cuda(device: DeviceType, stream: object) -> None:
    with pytest.raises(StreamError, match="expected a stream"):
        consumer_stream(device, stream)


@pytest.mark.parametrize("device", ON_HOST)
def test_the_host_has_no_streams(device: DeviceType) -> None:
    assert consumer_stream(device, None) is None
    assert consumer_stream(device, -1) is None
    for stream in (0, 1, 2, 140000, True, "x"):
        with pytest.raises(StreamError, match="stream=None"):
            consumer_stream(device, stream)


def test_model_devices_are_not_exported() -> None:
    with pytest.raises(DLPackError, match="model"):
        consumer_stream(DeviceType.EXT_DEV, None)
    assert issubclass(DLPackError, BufferError)


# ------------------------------------------------------------------ device, version, copy


def test_a_stream_is_kept_as_a_plain_integer() -> None:
    for stream in (np.int64(7), np.uint64(7), 7):
        handle = consumer_stream(DeviceType.CUDA, stream)
        assert (handle, type(handle)) == (7, int)
    with pytest.raises(StreamError, match="expected a stream"):
        consumer_stream(DeviceType.CUDA, 10**5000)


RIGHT = {
    "dl_device": (None, (1, 0), (DeviceType.CPU, 0), (np.int32(1), np.int64(0))),
    "max_version": (None, (1, 0), (0, 8), (1, 99), (np.int32(1), 0)),
    "copy": (None, True, False, np.True_, np.False_),
}
ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
    | st.tuples(st.integers() | st.text(max_size=2) | st.none(), st.integers() | st.floats())
    | st.tuples(st.integers()) | st.lists(st.integers(), max_size=3)
    | st.sampled_from(["cpu", "yes", "no", (1,), [1, 0], (1, 0, 0), (True, 0), (1, 10**5000), (None, 0), 2])
)  # fmt: skip


@given(st.sampled_from(sorted(RIGHT)), ANYTHING)
def test_what_the_protocol_does_not_have_is_refused_by_name(argument: str, value: object) -> None:
    """And nothing is copied for what is not True."""
    with SmartPool("cpu") as pool:
        buffer = pool.empty(4, "float32")
        before = outstanding()
        asked = {"max_version": (1, 0), argument: value}
        try:
            capsule = buffer.__dlpack__(**asked)
        except InvalidRequestError as error:
            assert str(error).startswith(f"{argument}: expected ")  # noqa: PT017 - either outcome is right
        except DLPackError:
            assert argument == "dl_device"  # a device, and none that the memory can go to
        else:
            assert value is None or isinstance(value, bool | tuple)
            assert (pool.managers[0].live_bytes > 16) is (argument == "copy" and value is True)
            del capsule
        assert outstanding() == before


@pytest.mark.parametrize(
    ("argument", "value"), [(name, value) for name in RIGHT for value in RIGHT[name]], ids=shown
)
def test_what_the_protocol_has_is_taken(argument: str, value: object) -> None:
    with SmartPool("cpu") as pool:
        buffer = pool.empty(4, "float32")
        capsule = buffer.__dlpack__(**{argument: value})
        copied = argument == "copy" and bool(value)
        assert pool.managers[0].live_bytes == (32 if copied else 16)
        del capsule
