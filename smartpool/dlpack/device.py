"""What the array API standard passes to ``__dlpack__``, checked: a stream, a device, a version, a copy."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np

from smartpool.errors import DLPackError, InvalidRequestError, StreamError
from smartpool.values import as_integer, shown

__all__ = ["DeviceType", "asked_copy", "asked_device", "asked_major", "consumer_stream", "not_exportable"]


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
        default stream, -1 no synchronization, larger integers a stream handle. On the host: None,
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
        if stream is None or as_integer(stream) == -1:
            return None
        raise StreamError(f"expected stream=None for memory on the host, got {shown(stream)}; leave it out")
    if device_type not in _ON_CUDA:
        raise not_exportable(device_type)
    if stream is None:
        return LEGACY_DEFAULT_STREAM
    handle = as_integer(stream)
    if handle is None:
        raise StreamError(
            f"expected a stream as an integer or None, got {stream!r}; pass the handle (stream.cuda_stream "
            "in PyTorch, stream.ptr in CuPy)"
        )
    if handle == 0:
        raise StreamError(
            "expected a stream other than 0, which does not tell the two default streams apart; "
            "pass 1 for the legacy default stream or 2 for the per-thread default stream"
        )
    if not -1 <= handle < 1 << 64:
        raise StreamError(f"expected a stream handle, 1, 2 or -1, got {shown(handle)}")
    if handle == -1:
        return None
    return LEGACY_DEFAULT_STREAM if handle == 1 else handle


def asked_device(dl_device: Any) -> tuple[int, int]:
    """Return the device that the consumer asks for."""
    pair = _pair(dl_device)
    if pair is None:
        raise InvalidRequestError(
            "dl_device: expected None or a tuple (device type, number), such as (1, 0) for the host, "
            f"got {shown(dl_device)}"
        )
    return pair


def asked_copy(copy: object) -> bool:
    """Return whether the consumer asks for a copy, or forbids one."""
    if not isinstance(copy, bool | np.bool):
        raise InvalidRequestError(f"copy: expected True, False or None, got {shown(copy)}")
    return bool(copy)


def asked_major(max_version: Any) -> int:
    """Return the major version that the consumer accepts."""
    pair = _pair(max_version)
    if pair is None:
        raise InvalidRequestError(
            f"max_version: expected None or a tuple (major, minor), such as (1, 0), got {shown(max_version)}"
        )
    return pair[0]


def _pair(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, tuple) or len(value) != 2:
        return None
    first, second = value
    if first.__class__ is not int or second.__class__ is not int:  # the usual case is quick
        first, second = as_integer(first), as_integer(second)
    return None if first is None or second is None else (first, second)


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
