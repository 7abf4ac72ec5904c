"""Loading `cuda.bindings`, finding devices, and turning every `CUresult` into one of our errors.

The only module that imports `cuda`. Whatever is missing has an error of its own: the Python
package, the NVIDIA driver, a driver that is too old for the package, a device, this device.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from smartpool.errors import (
    DeviceNotFoundError,
    DriverError,
    DriverNotInstalledError,
    DriverOutOfMemoryError,
    DriverTooOldError,
)

__all__ = ["Bindings", "load"]


class Bindings:
    """The driver's functions, initialized.

    Parameters
    ----------
    api
        The module `cuda.bindings.driver`, or something that behaves like it.
    version
        The version of the package.

    Attributes
    ----------
    driver_version
        The CUDA version that the installed driver supports, such as ``(13, 0)``.

    Raises
    ------
    DriverNotInstalledError
        When the NVIDIA driver is missing or does not start.
    DriverTooOldError
        When the driver is of an older major version than the package.
    DeviceNotFoundError
        When there is no device.
    """

    def __init__(self, api: Any, version: str) -> None:
        self.api = api
        self.version = version
        self.success = api.CUresult.CUDA_SUCCESS
        self.not_ready = api.CUresult.CUDA_ERROR_NOT_READY
        self.driver_version = self._find_driver()
        self._initialize()

    def device_count(self) -> int:
        """Return how many devices this process may see."""
        return int(self.expect("cuDeviceGetCount", self.api.cuDeviceGetCount()))

    def device(self, ordinal: int) -> Any:
        """Return the device handle of `ordinal`.

        Raises
        ------
        DeviceNotFoundError
            When there is no such device.
        """
        count = self.device_count()
        if not 0 <= ordinal < count:
            there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise DeviceNotFoundError(
                f"no device 'cuda:{ordinal}': this process sees {there}; CUDA_VISIBLE_DEVICES decides which"
            )
        return self.expect("cuDeviceGet", self.api.cuDeviceGet(ordinal), ordinal=ordinal)

    def identity(self, ordinal: int) -> str:
        """Return what a device is called in every process: its UUID, in hexadecimal."""
        result = self.api.cuDeviceGetUuid(self.device(ordinal))
        return bytes(self.expect("cuDeviceGetUuid", result, ordinal=ordinal).bytes).hex()

    def expect(self, call: str, result: tuple[Any, ...], **arguments: object) -> Any:
        """Return what came with the success of a driver function, or raise what its failure means."""
        if result[0] is not self.success:
            raise failure(call, result[0], arguments)
        return result[1] if len(result) > 1 else None

    def _find_driver(self) -> tuple[int, int]:
        try:
            number = self.expect("cuDriverGetVersion", self.api.cuDriverGetVersion())
        except RuntimeError as error:  # the library itself is not found
            reason = str(error).rstrip(".")
        else:
            return self._checked(number)
        # Outside of the handler: how the package looked for the library is a page that helps nobody.
        raise DriverNotInstalledError(f"expected an NVIDIA driver (libcuda), got: {reason}; {_INSTALL}")

    def _checked(self, number: int) -> tuple[int, int]:
        """Return the version that the driver supports, once it is new enough for the package."""
        supported = (number // 1000, number % 1000 // 10)
        wanted = int(self.version.split(".")[0])
        if supported[0] < wanted:
            raise DriverTooOldError(
                f"expected a driver for CUDA {wanted}.0 or newer, as cuda-bindings {self.version} needs, "
                f"got one for CUDA {supported[0]}.{supported[1]}: update the driver, or "
                f"pip install 'cuda-python<{supported[0] + 1}'"
            )
        return supported

    def _initialize(self) -> None:
        code = self.api.cuInit(0)[0]
        if code is self.success:
            return
        if _name(code) == "CUDA_ERROR_NO_DEVICE":
            raise DeviceNotFoundError(
                "no CUDA device: the driver works but sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        raise DriverNotInstalledError(
            f"the NVIDIA driver did not start: cuInit gave {_name(code)}; {_INSTALL}"
        )


@cache
def load() -> Bindings:
    """Return the bindings, loaded once a process.

    Raises
    ------
    DriverNotInstalledError
        When the package `cuda-python` or the NVIDIA driver is missing.
    """
    try:
        from cuda.bindings import __version__, driver  # noqa: PLC0415 - a missing package has its own error
    except ImportError as error:
        raise DriverNotInstalledError(
            f"expected the Python package cuda-python, got: {error}; pip install cuda-python "
            "(there are wheels for Linux on x86-64 and Arm, and for Windows on x86-64)"
        ) from error
    return Bindings(driver, __version__)


def failure(call: str, code: Any, arguments: Mapping[str, object]) -> DriverError:
    """Return the error for a failed driver call, with what to do about it."""
    name = _name(code)
    if name == "CUDA_ERROR_OUT_OF_MEMORY" and call in ("allocate", "create_chunk", "allocate_host"):
        return DriverOutOfMemoryError(call, name, arguments, advice="the device has no more physical memory")
    return DriverError(call, name, arguments, advice=_ADVICE.get(name, ""))


def _name(code: Any) -> str:
    return getattr(code, "name", None) or f"CUDA error {code}"


_INSTALL: Final = "install the NVIDIA driver, or use the 'cpu' or 'model' device"
_LOST: Final = "the CUDA context is lost and every later call will fail: end the process"
_CAPTURE: Final = "a stream is being captured into a graph, and this call is not allowed meanwhile"
_ADVICE: Final = {
    "CUDA_ERROR_OUT_OF_MEMORY": "the device or the driver ran out of memory or addresses",
    "CUDA_ERROR_NOT_INITIALIZED": "CUDA does not survive a fork: start processes with 'spawn'",
    "CUDA_ERROR_DEINITIALIZED": "the process is ending and the driver has shut down",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "the device was reset, or its primary context released, by other code",
    "CUDA_ERROR_INVALID_HANDLE": "the stream or event was destroyed, or belongs to another device",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": _CAPTURE,
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": _CAPTURE,
    "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT": _CAPTURE,
    "CUDA_ERROR_CAPTURED_EVENT": "the event was recorded in a stream that is being captured: it has no state",
    **dict.fromkeys(
        (
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_LAUNCH_TIMEOUT",
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            "CUDA_ERROR_HARDWARE_STACK_ERROR",
            "CUDA_ERROR_ILLEGAL_INSTRUCTION",
            "CUDA_ERROR_MISALIGNED_ADDRESS",
            "CUDA_ERROR_INVALID_ADDRESS_SPACE",
            "CUDA_ERROR_INVALID_PC",
            "CUDA_ERROR_ASSERT",
        ),
        _LOST,
    ),
}
