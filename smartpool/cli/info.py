"""``smartpool info`` tells versions and devices: the first thing to put into a report of a problem."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from smartpool._version import __version__
from smartpool.cli.arguments import add_command
from smartpool.cli.console import make_console
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, SmartPoolError
from smartpool.report.table import new_table, print_table
from smartpool.units import format_bytes

__all__ = ["add_parser", "facts", "run"]

_OURS: Final = ("numpy", "cuda-bindings", "rich")
"""Packages that SmartPool uses: told also where they are missing."""

_FRAMEWORKS: Final = (
    "torch", "cupy", "cupy-cuda12x", "cupy-cuda13x", "jax", "numba-cuda", "rmm-cu12", "rmm-cu13"
)  # fmt: skip
"""Packages that share memory with it: told where they are there."""

_SIZES: Final = ("total_bytes", "free_bytes", "granularity_bytes")
_SCHEMA: Final = 1


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, __name__, run, help="versions and devices of this machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if args.json:
        print(json.dumps(facts(), indent=1))
        return 0
    console = make_console()
    known = facts()
    versions = new_table("", "version")
    for name, found in known["versions"].items():
        versions.add_row(name, found or "not installed")
    console.print(versions)
    devices = new_table("device", "memory", "free", "granularity", "state")
    for device in known["devices"]:
        sizes = [format_bytes(device[key]) if key in device else "" for key in _SIZES]
        devices.add_row(device["device"], *sizes, "not available" if "error" in device else "ready")
    print_table(devices, console, spare=("granularity", "free", "state"))
    for device in known["devices"]:
        if "error" in device:
            console.print(f"{device['device']}: {device['error']}", markup=False, soft_wrap=True)
    return 0


def facts() -> dict[str, Any]:
    """Return what is known about this machine, ready for JSON.

    A device that cannot be opened has an ``error`` instead of sizes; that CUDA is missing is not a
    failure of this function.
    """
    return {
        "schema": _SCHEMA,
        "versions": {
            "smartpool": __version__,
            "python": platform.python_version(),
            **{name: _installed(name) for name in _OURS},
            **{name: found for name in _FRAMEWORKS if (found := _installed(name))},
        },
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "devices": [_device("cpu"), _device("model"), *_cuda_devices()],
    }


def _cuda_devices() -> list[dict[str, Any]]:
    """Return every CUDA device, or the reason why there is none."""
    devices = [_device("cuda:0")]
    while "error" not in devices[-1]:
        try:
            devices.append(_opened(f"cuda:{len(devices)}"))
        except DeviceNotFoundError:
            return devices
    return devices


def _device(name: str) -> dict[str, Any]:
    try:
        return _opened(name)
    except SmartPoolError as error:
        return {"device": name, "error": f"{type(error).__name__}: {error}"}


def _opened(name: str) -> dict[str, Any]:
    driver = open_driver(name)
    try:
        memory = driver.memory_info()
        return {
            "device": driver.name,
            "total_bytes": memory.total,
            "free_bytes": memory.free,
            "granularity_bytes": driver.granularity,
        }
    finally:
        driver.close()


def _installed(package: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
