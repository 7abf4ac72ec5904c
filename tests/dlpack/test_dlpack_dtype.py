"""Names of element types: what is read, what DLPack numbers they give, what is refused."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.dlpack import DType
from smartpool.dlpack.dtype import _BY_NAME, TypeCode
from smartpool.errors import InvalidRequestError
from smartpool.values import shown

# Code and bits as dlpack.h 1.1 has them, written down a second time on purpose.
HEADER = {
    "int8": (0, 8), "int16": (0, 16), "int32": (0, 32), "int64": (0, 64),
    "uint8": (1, 8), "uint16": (1, 16), "uint32": (1, 32), "uint64": (1, 64),
    "float16": (2, 16), "float32": (2, 32), "float64": (2, 64), "bfloat16": (4, 16),
    "complex32": (5, 32), "complex64": (5, 64), "complex128": (5, 128), "bool": (6, 8),
    "float8_e3m4": (7, 8), "float8_e4m3": (8, 8), "float8_e4m3b11fnuz": (9, 8), "float8_e4m3fn": (10, 8),
    "float8_e4m3fnuz": (11, 8), "float8_e5m2": (12, 8), "float8_e5m2fnuz": (13, 8), "float8_e8m0fnu": (14, 8),
    "float6_e2m3fn": (15, 6), "float6_e3m2fn": (16, 6), "float4_e2m1fn": (17, 4), "float4_e2m1fn_x2": (17, 4),
}  # fmt: skip

NATIVE = [name for name, dtype in _BY_NAME.items() if dtype.native]


def test_every_name_has_the_numbers_of_the_header() -> None:
    assert {name: (dtype.code, dtype.bits) for name, dtype in _BY_NAME.items()} == HEADER
    assert {dtype.name for dtype in _BY_NAME.values() if dtype.lanes != 1} == {"float4_e2m1fn_x2"}
    assert {dtype.code for dtype in _BY_NAME.values()} == set(TypeCode)


@pytest.mark.parametrize("name", HEADER)
def test_a_type_is_its_own_name(name: str) -> None:
    dtype = DType.parse(name)
    assert DType.parse(dtype) is dtype is DType.parse(str(dtype)) is DType.parse(f"torch.{name}")


@pytest.mark.parametrize("name", NATIVE)
def test_numpy_names_the_same_types(name: str) -> None:
    dtype = DType.parse(name)
    for spelling in (np.dtype(name), np.dtype(name).type, np.dtype(name).str, np.dtype(name).char):
        assert DType.parse(spelling) is dtype
    assert dtype.carrier == np.dtype(name)
    assert dtype.itemsize == np.dtype(name).itemsize


@pytest.mark.parametrize(
    ("python", "name"),
    [(float, "float64"), (int, np.dtype(int).name), (bool, "bool"), (complex, "complex128")],
)
def test_python_types_mean_what_they_mean_in_numpy(python: type, name: str) -> None:
    assert DType.parse(python).name == name


def test_byte_swapped_types_name_the_type_to_use() -> None:
    for swapped in (">i2", np.dtype(">i2")) if np.little_endian else ("<i2", np.dtype("<i2")):
        with pytest.raises(InvalidRequestError, match=r"byte order.*use 'int16'"):
            DType.parse(swapped)


def test_a_class_that_holds_a_dtype_means_it() -> None:
    class Scalar:  # what jax.numpy.float32 is
        dtype = np.dtype(np.float32)

    assert DType.parse(Scalar).name == "float32"


def test_ml_dtypes_are_read() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in HEADER:
        scalar = getattr(ml_dtypes, name, None)
        if scalar is not None:
            assert DType.parse(scalar).name == DType.parse(np.dtype(scalar)).name == name
    with pytest.raises(InvalidRequestError, match="int4"):
        DType.parse(ml_dtypes.int4)


def test_torch_dtypes_are_read() -> None:
    torch = pytest.importorskip("torch")
    read = {name for name in HEADER if isinstance(getattr(torch, name, None), torch.dtype)}
    assert {"bfloat16", "complex32", "float8_e8m0fnu", "float4_e2m1fn_x2"} <= read
    for name in read:
        assert DType.parse(getattr(torch, name)).name == name
    with pytest.raises(InvalidRequestError, match="qint8"):
        DType.parse(torch.qint8)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("fp16", "float16"),
        ("fp32", "float32"),
        ("fp64", "float64"),
        ("bf16", "bfloat16"),
        ("half", "float16"),
    ],
)
def test_short_names_of_the_field_are_read(alias: str, name: str) -> None:
    assert DType.parse(alias).name == name


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("flaot32", "float32"), ("FP16", "float16"), ("fp8_e4m3", "float8_e4m3fn"), ("bfloat", "bfloat16")],
)
def test_a_name_that_is_nearly_one_tells_which(wrong: str, meant: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"did you mean .*'{meant}'"):
        DType.parse(wrong)


@pytest.mark.parametrize("name", HEADER)
def test_numpy_takes_our_types_where_it_has_them(name: str) -> None:
    dtype = DType.parse(name)
    if dtype.native:
        assert np.dtype(dtype) == np.zeros(1, dtype).dtype == np.dtype(name)
    else:
        with pytest.raises(TypeError):
            np.dtype(dtype)


def test_classes_are_not_kept_for_ever() -> None:
    class Scalar:
        dtype = np.dtype(np.float32)

    kept = weakref.ref(Scalar)
    assert DType.parse(Scalar).name == "float32"
    del Scalar
    for _ in range(1000):
        DType.parse(type("Scalar", (), {"dtype": np.dtype("f4")}))
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("abstract", [np.floating, np.integer, np.number, np.generic, np.inexact])
def test_abstract_types_are_refused(abstract: type) -> None:
    with pytest.raises(InvalidRequestError, match="expected a dtype"):
        DType.parse(abstract)


@pytest.mark.parametrize(
    "refused",
    [
        ">f4" if np.little_endian else "<f4",
        np.dtype(np.int16).newbyteorder("S"),
        object,
        "O",
        np.dtype([("x", "f4"), ("y", "i4")]),
        [("x", "f4")],
        "(2,3)f4",
        np.dtype(("f4", (2,))),
        str,
        "S8",
        "V4",
        "datetime64[ns]",
        "timedelta64[s]",
        np.longdouble,
        np.clongdouble,
        None,
        7,
        True,
        1.5,
        b"float32",
        b"a",
        "a",
        "torch.qint8",
        "float4_e2m1fn_x4",
        list,
        type,
        (np.float32, (2,)),
        "float33",
        "",
        "f4,i4",
        np.zeros(3),
        {},
        [],
        (1, 10**5000),
    ],
    ids=shown,
)
def test_what_dlpack_cannot_say_is_refused(refused: object) -> None:
    with pytest.raises(InvalidRequestError, match="expected a dtype"):
        DType.parse(refused)


@given(st.text(max_size=20) | st.binary(max_size=8) | st.lists(st.text(max_size=3), max_size=3))
def test_anything_else_is_a_type_or_one_clear_error(anything: object) -> None:
    try:
        assert DType.parse(anything).name in HEADER
    except InvalidRequestError as error:
        assert "expected a dtype" in str(error)  # noqa: PT017 - either outcome is right


@given(st.sampled_from(sorted(HEADER)), st.integers(0, 1 << 40))
def test_bytes_hold_all_bits_and_less_than_one_byte_more(name: str, count: int) -> None:
    dtype = DType.parse(name)
    bits = count * dtype.bits * dtype.lanes
    assert 0 <= dtype.nbytes(count) * 8 - bits < 8
    narrow = np.uint8(count % 256)
    assert dtype.nbytes(narrow) == dtype.nbytes(int(narrow))


def test_types_below_one_byte_have_no_item_size() -> None:
    assert DType.parse("float4_e2m1fn_x2").itemsize == 1
    with pytest.raises(InvalidRequestError, match="nbytes"):
        _ = DType.parse("float6_e2m3fn").itemsize
