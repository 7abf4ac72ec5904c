from __future__ import annotations

import json
import subprocess
import sys

import pytest
from waiting import PATIENCE_S

import smartpool
from smartpool.cli import info, main
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverNotInstalledError


@pytest.fixture
def cuda(monkeypatch):
    """Put model devices, or an error, in the place of CUDA devices."""

    def put(devices):
        def opened(name):
            if not name.startswith("cuda:"):
                return open_driver(name)
            if isinstance(devices, Exception):
                raise devices
            if int(name.removeprefix("cuda:")) >= devices:
                raise DeviceNotFoundError(f"no device {name!r}")
            return open_driver("model:80GiB")

        monkeypatch.setattr(info, "open_driver", opened)

    return put


def test_json(capsys, cuda):
    cuda(DriverNotInstalledError("expected an NVIDIA driver"))
    assert main(["info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["versions"]["smartpool"] == smartpool.__version__
    cpu, model, missing = document["devices"]
    assert cpu["device"] == "cpu"
    assert 0 < cpu["free_bytes"] <= cpu["total_bytes"]
    assert model["total_bytes"] == model["free_bytes"] == 141 << 30
    assert missing == {"device": "cuda:0", "error": "DriverNotInstalledError: expected an NVIDIA driver"}


def test_every_cuda_device_is_told(cuda):
    cuda(3)
    devices = info.facts()["devices"][2:]
    assert [device["total_bytes"] for device in devices] == [80 << 30] * 3


def test_a_table_with_the_reason_below(capsys, cuda):
    cuda(DriverNotInstalledError("expected an NVIDIA driver"))
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"smartpool {smartpool.__version__}".split() in [line.split() for line in out.splitlines()]
    assert "cuda:0: DriverNotInstalledError: expected an NVIDIA driver" in out


def test_a_narrow_screen_loses_columns_and_no_digit(capsys, cuda, monkeypatch):
    cuda(2)
    for width in (30, 40, 60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert "…" not in out
        assert "141 GiB" in out
        assert ("the screen is too narrow" in out) == (width < 60)


def test_finding_versions_imports_no_framework():
    code = (
        "import sys; from smartpool.cli.info import _installed, _OURS, _FRAMEWORKS\n"
        "[_installed(name) for name in (*_OURS, *_FRAMEWORKS)]\n"
        "assert not {'cuda', 'torch', 'cupy', 'jax', 'numba', 'rmm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
