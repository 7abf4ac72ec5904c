"""The ``stream`` argument of ``__dlpack__``, by the rules of the array API standard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.dlpack import DeviceType, consumer_stream
from smartpool.errors import DLPackError, StreamError

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
