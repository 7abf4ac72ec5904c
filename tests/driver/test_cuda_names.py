"""Every name that the cuda driver takes from `cuda.bindings.driver` is there, also where no GPU is.

The fake answers to any enumeration's name, so a misspelt one would show on a device only.
"""

import re
from pathlib import Path

import pytest

import smartpool.driver.cuda

api = pytest.importorskip("cuda.bindings.driver")
SOURCES = sorted(Path(smartpool.driver.cuda.__file__).parent.glob("*.py"))
TEXT = "\n".join(source.read_text(encoding="utf-8") for source in SOURCES)


def test_functions_and_types():
    names = set(re.findall(r"api\.(cu[A-Z]\w+|CU\w+)", TEXT))
    assert {"cuMemMap", "cuEventRecord", "CUstream"} <= names
    assert [name for name in sorted(names) if not hasattr(api, name)] == []


def test_enumerations():
    pairs = set(re.findall(r"\b(CU[a-z]\w+)\.(CU\w+)", TEXT))
    assert ("CUstream_flags", "CU_STREAM_NON_BLOCKING") in pairs
    assert [pair for pair in sorted(pairs) if not hasattr(getattr(api, pair[0]), pair[1])] == []


def test_attributes():
    names = set(re.findall(r'\.attribute\("(\w+)"\)', TEXT)) | {
        "COMPUTE_CAPABILITY_MAJOR",
        "COMPUTE_CAPABILITY_MINOR",
    }
    assert "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED" in names
    known = api.CUdevice_attribute.__members__
    assert [name for name in sorted(names) if f"CU_DEVICE_ATTRIBUTE_{name}" not in known] == []


def test_codes_that_we_give_advice_on():
    names = set(re.findall(r'"(CUDA_(?:ERROR_)?\w+)"', TEXT))
    assert "CUDA_ERROR_OUT_OF_MEMORY" in names
    assert [
        name for name in sorted(names) if name not in api.CUresult.__members__ and "VISIBLE" not in name
    ] == []


def test_structures_take_what_we_set():
    properties, access = api.CUmemAllocationProp(), api.CUmemAccessDesc()
    properties.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = 1
    access.location.id = 1
    access.flags = api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    assert properties.location.id == access.location.id == 1
    assert int(api.CUstream(2)) == 2
