"""Devices and streams as the array API standard passes them to ``__dlpack__``."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from smartpool.errors import DLPackError, StreamError

__all__ = ["DeviceType", "consumer_stream"]


class DeviceType(IntEnum):
    """Those of DLPack's ``DLDeviceType`` that a driver of ours can name."""

    CPU = 1
    CUDA = 2
    CUDA_HOST = 3
    EXT_DEV = 12
    CUDA_MANAGED = 13


# Looking members up in an enum costs more than the rest of `consumer_stream`.
_ON_HOST: Final = frozenset({int(DeviceType.CPU), int(DeviceType.CUDA_HOST)})
_ON_CUDA: Final = frozenset({int(DeviceType.CUDA), int(DeviceType.CUDA_MANAGED)})

LEGACY_DEFAULT_STREAM: Final = 0
"""The driver protocol's handle of CUDA's legacy default stream, which DLPack calls 1."""


def consumer_stream(device_type: int, stream: object) -> int | None:
    """Return the driver's handle of the stream that the consumer will use, None for no ordering.

    Parameters
    ----------
    device_type
        DLPack's number of the producer's device.
    stream
        What the consumer passed. On CUDA: None or 1 the legacy default stream, 2 the per-thread
        default stream, -1 no synchronisation, larger integers a stream handle. On the host: None,
        or -1, which asks for what is the case anyway.

    Returns
    -------
    int or None
        The stream that must wait for the producer's work. The legacy default stream is 0, as in
        the driver protocol. None: nothing needs to wait.

    Raises
    ------
    StreamError
        For 0 (it could mean either default stream, so the standard forbids it), other negative
        numbers, what is not an integer, and any stream on the host.
    DLPackError
        For a device that cannot be exported.

    Examples
    --------
    >>> consumer_stream(DeviceType.CUDA, None), consumer_stream(DeviceType.CUDA, 1)
    (0, 0)
    >>> consumer_stream(DeviceType.CUDA, 2), consumer_stream(DeviceType.CUDA, -1)
    (2, None)
    """
    if device_type in _ON_HOST:
        if stream is None or (type(stream) is int and stream == -1):
            return None
        raise StreamError(f"expected stream=None for memory on the host, got {stream!r}; leave it out")
    if device_type not in _ON_CUDA:
        raise not_exportable(device_type)
    if stream is None:
        return LEGACY_DEFAULT_STREAM
    if not isinstance(stream, int) or isinstance(stream, bool):
        raise StreamError(
            f"expected a stream as an integer or None, got {stream!r}; pass the handle (stream.cuda_stream "
            "in PyTorch, stream.ptr in CuPy)"
        )
    if stream == 0:
        raise StreamError(
            "expected a stream other than 0, which does not tell the two default streams apart; "
            "pass 1 for the legacy default stream or 2 for the per-thread default stream"
        )
    if stream < -1:
        raise StreamError(f"expected a stream handle, 1, 2 or -1, got {stream}")
    if stream == -1:
        return None
    return LEGACY_DEFAULT_STREAM if stream == 1 else int(stream)


def not_exportable(device_type: int) -> DLPackError:
    """Return the error for a device whose memory nobody else can read."""
    return DLPackError(
        f"memory of {_name(device_type)} cannot be exported through DLPack; use 'cpu' or 'cuda:N'"
    )


def _name(device_type: int) -> str:
    """Return a device type in words."""
    if device_type == DeviceType.EXT_DEV:
        return "a model device, which has addresses and no memory,"
    try:
        return f"a device of DLPack's type {DeviceType(device_type).name}"
    except ValueError:
        return f"a device of DLPack's type {int(device_type)}, which SmartPool does not know,"
