"""From a device's name to its driver."""

from __future__ import annotations

import re

from smartpool.driver.checked import CheckedDriver
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.driver.protocol import Driver
from smartpool.errors import DeviceNotFoundError, InvalidSizeError
from smartpool.units import parse_size

__all__ = ["open_driver"]

_NAMES = "use 'cpu', 'model', 'model:SIZE' such as 'model:80GiB', 'cuda', or 'cuda:N' such as 'cuda:0'"


def open_driver(name: str, *, checked: bool = False) -> Driver:
    """Open the device `name` and return its driver.

    Parameters
    ----------
    name
        ``"cpu"`` (or ``"cpu:0"``), ``"model"`` (141 GiB, an H200) or ``"model:SIZE"``, ``"cuda"``
        (device 0) or ``"cuda:N"``.
    checked
        Whether what breaks the protocol's rules is refused before CUDA is asked
        (`smartpool.driver.checked`); ``cpu`` and ``model`` always check.

    Returns
    -------
    Driver
        A new driver. It is the caller's to close.

    Raises
    ------
    DeviceNotFoundError
        When the name is not understood, or there is no such device.
    DriverNotInstalledError
        When CUDA is asked for and its driver or Python package is missing.

    Examples
    --------
    >>> open_driver("model:1.5TiB").name
    'model:1536GiB'
    >>> open_driver("gpu")
    Traceback (most recent call last):
    smartpool.errors.DeviceNotFoundError: no device 'gpu'; use 'cpu', 'model', ...
    """
    kind, colon, detail = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind == "cpu" and detail in ("", "0") and name != "cpu:":
        return CpuDriver()
    if kind == "model" and not colon:
        return ModelDriver()
    if kind == "model":
        return _open_model(name, detail)
    if kind == "cuda" and (not colon or re.fullmatch("[0-9]{1,9}", detail)):
        from smartpool.driver.cuda import CudaDriver  # noqa: PLC0415 - a laptop never pays for it

        driver = CudaDriver(int(detail or "0"))
        return CheckedDriver(driver) if checked else driver
    raise DeviceNotFoundError(f"no device {name!r:.80}; {_NAMES}")


def _open_model(name: str, detail: str) -> Driver:
    try:
        capacity = parse_size(detail)
        if capacity:
            return ModelDriver(capacity)
    except InvalidSizeError as error:
        raise DeviceNotFoundError(f"no device {name!r:.80}: {error}; {_NAMES}") from error
    raise DeviceNotFoundError(f"no device {name!r:.80}: it would have no memory; {_NAMES}")
