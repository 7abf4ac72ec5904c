"""Element types: their usual names, DLPack's codes, and NumPy's equivalents.

DLPack describes a type by three numbers, ``(code, bits, lanes)``. The codes are those of
``dlpack.h`` 1.1, which added the 8-, 6- and 4-bit floats; older versions know the first seven.
Types below one byte are packed without padding, element *i* in bits ``[i * bits, (i + 1) * bits)``
counted from the least significant bit of the first byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import IntEnum
from operator import index
from typing import Any, Final, Protocol

import numpy as np

from smartpool.errors import InvalidRequestError
from smartpool.values import shown

__all__ = ["DType", "DTypeLike", "TypeCode"]


class TypeCode(IntEnum):
    """DLPack's ``DLDataTypeCode``. Codes from `FLOAT8_E3M4` on came with DLPack 1.1."""

    INT = 0
    UINT = 1
    FLOAT = 2
    BFLOAT = 4
    COMPLEX = 5
    BOOL = 6
    FLOAT8_E3M4 = 7
    FLOAT8_E4M3 = 8
    FLOAT8_E4M3B11FNUZ = 9
    FLOAT8_E4M3FN = 10
    FLOAT8_E4M3FNUZ = 11
    FLOAT8_E5M2 = 12
    FLOAT8_E5M2FNUZ = 13
    FLOAT8_E8M0FNU = 14
    FLOAT6_E2M3FN = 15
    FLOAT6_E3M2FN = 16
    FLOAT4_E2M1FN = 17


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. Use `DType.parse`; the constructor makes the table below.

    Attributes
    ----------
    name
        The usual name, the same in DLPack, NumPy, `ml_dtypes` and PyTorch.
    code, bits, lanes
        What DLPack writes. `bits` counts one lane; `lanes` is 1 but for ``float4_e2m1fn_x2``,
        PyTorch's pair of 4-bit floats in a byte.
    native
        Whether NumPy itself has the type and exports it by this code.
    carrier
        A NumPy type of as many bytes (one byte for types that are smaller): the type itself where
        `native`, else an unsigned integer that stands in for it.

    Examples
    --------
    >>> DType.parse("bfloat16").bits, DType.parse(float).name, DType.parse("<f4").name
    (16, 'float64', 'float32')
    >>> DType.parse("float4_e2m1fn").nbytes(5)
    3
    """

    name: str
    code: TypeCode
    bits: int
    lanes: int = 1
    native: bool = field(default=False, compare=False)
    carrier: np.dtype[Any] = field(default=np.dtype(np.uint8), compare=False, repr=False)

    @staticmethod
    def parse(dtype: DTypeLike) -> DType:
        """Return the type that `dtype` names. O(1) from the second time on.

        Parameters
        ----------
        dtype
            A `DType`; a usual name or a NumPy type string (``"bfloat16"``, ``"bf16"``, ``"<f4"``); a dtype or
            scalar type of NumPy or `ml_dtypes`; a PyTorch dtype; ``float``, ``int``, ``bool`` or
            ``complex``, which mean what they mean in NumPy.

        Raises
        ------
        InvalidRequestError
            For what names no type, and for types that DLPack cannot describe: byte-swapped,
            structured, object, string, date and extended-precision ones.
        """
        try:
            known = _PARSED.get(dtype)
        except TypeError:  # not hashable: a list of fields, for example
            known = None
        if known is not None:
            return known
        parsed = _parse(dtype)
        if len(_PARSED) >= _REMEMBERED:
            _PARSED.clear()
        _PARSED[dtype] = parsed
        return parsed

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's own type, so that ``numpy.dtype`` takes this one; `AttributeError` where it has none."""
        if not self.native:
            raise AttributeError(f"NumPy has no {self.name}; its bits are {self.carrier.name}")
        return self.carrier

    @property
    def itemsize(self) -> int:
        """Bytes of one element. Raises `InvalidRequestError` for types below one byte."""
        size, rest = divmod(self.bits * self.lanes, 8)
        if rest:
            raise InvalidRequestError(
                f"{self.name} has {self.bits} bits, not whole bytes; use nbytes(count) for packed elements"
            )
        return size

    def nbytes(self, count: int) -> int:
        """Return the bytes that `count` elements take, packed; the last byte may be partly used."""
        count = index(count)  # a narrow integer of NumPy's would wrap around
        return (count * self.bits * self.lanes + 7) >> 3

    def __str__(self) -> str:
        return self.name


class _TorchDType(Protocol):
    """PyTorch's dtypes, which cannot be named without importing it."""

    @property
    def is_floating_point(self) -> bool: ...
    @property
    def is_complex(self) -> bool: ...


DTypeLike = DType | str | type[Any] | np.dtype[Any] | _TorchDType
"""What `DType.parse` reads."""


def _parse(dtype: object) -> DType:
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str):
        # Not left to NumPy, which reads more than types in strings, and warns about some.
        known = _BY_SPELLING.get(dtype.removeprefix("torch."))
        if known is None and dtype[:1] in {"<", ">"} and dtype[1:] in _BY_SPELLING:
            raise _byte_swapped(dtype, _BY_SPELLING[dtype[1:]])
    elif type(dtype).__module__ == "torch":
        # PyTorch is not imported here: its dtypes print as "torch.<name>".
        known = _BY_NAME.get(repr(dtype).removeprefix("torch."))
    else:
        known = _from_numpy(dtype)
    if known is None:
        raise InvalidRequestError(f"expected a dtype that DLPack knows, got {shown(dtype)}; {_advice(dtype)}")
    return known


def _advice(dtype: object) -> str:
    """Return what to do about something that is no type, or none that DLPack knows."""
    if isinstance(dtype, str):
        meant = get_close_matches(dtype.lower().replace("fp", "float"), _BY_NAME)
        if meant:
            return f"did you mean {' or '.join(map(repr, meant))}?"
    return "use a name, such as 'float32', 'bfloat16' or 'float8_e4m3fn', or a dtype of NumPy or PyTorch"


def _from_numpy(dtype: object) -> DType | None:
    """Return the type that a NumPy dtype, or a class that stands for one, means; None for others."""
    if isinstance(dtype, type):
        # JAX's scalar classes hold their dtype; NumPy's and Python's are looked up by NumPy.
        held = getattr(dtype, "dtype", None)
        if isinstance(held, np.dtype):
            dtype = held
        elif issubclass(dtype, (np.generic, int, float, complex)):
            try:
                dtype = np.dtype(dtype)
            except TypeError:  # an abstract one, such as np.floating
                return None
    if not isinstance(dtype, np.dtype) or dtype.shape:
        return None
    known = _BY_NAME.get(dtype.name)
    if known is not None and not dtype.isnative:
        raise _byte_swapped(dtype, known)
    return known


def _byte_swapped(dtype: object, native: DType) -> InvalidRequestError:
    return InvalidRequestError(
        f"expected a dtype in this machine's byte order, got {dtype!r}; DLPack cannot describe others: "
        f"use {native.name!r} and swap the bytes"
    )


def _table() -> dict[str, DType]:
    """Return every type by name."""
    native = [
        *((f"int{bits}", TypeCode.INT, bits) for bits in (8, 16, 32, 64)),
        *((f"uint{bits}", TypeCode.UINT, bits) for bits in (8, 16, 32, 64)),
        *((f"float{bits}", TypeCode.FLOAT, bits) for bits in (16, 32, 64)),
        *((f"complex{bits}", TypeCode.COMPLEX, bits) for bits in (64, 128)),
        ("bool", TypeCode.BOOL, 8),
    ]
    types = [DType(name, code, bits, native=True, carrier=np.dtype(name)) for name, code, bits in native]
    types += [
        DType("bfloat16", TypeCode.BFLOAT, 16, carrier=np.dtype(np.uint16)),
        DType("complex32", TypeCode.COMPLEX, 32, carrier=np.dtype(np.uint32)),
        # The rest are called as their codes are, and tell their width in the first digit.
        *(DType(code.name.lower(), code, int(code.name[5])) for code in TypeCode if code > TypeCode.BOOL),
        DType("float4_e2m1fn_x2", TypeCode.FLOAT4_E2M1FN, 4, lanes=2),
    ]
    return {dtype.name: dtype for dtype in types}


def _spellings() -> dict[str, DType]:
    """Return every type by all strings that mean it: names, NumPy's type strings and characters."""
    spellings = dict(_BY_NAME)
    for alias in (*"?bBhHiIlLqQefdFD", "half", "single", "double", "float", "int", "complex"):
        spellings[alias] = _BY_NAME[np.dtype(alias).name]
    for alias, name in {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16"}.items():
        spellings[alias] = _BY_NAME[name]
    for dtype in _BY_NAME.values():
        if dtype.native:
            order, code = dtype.carrier.str[0], dtype.carrier.str[1:]
            spellings |= {order + code: dtype, "=" + code: dtype, code: dtype}
    return spellings


_BY_NAME: Final = _table()
_BY_SPELLING: Final = _spellings()
# What was parsed, by what it was parsed from. Python's own types hash like themselves, so that
# ``float`` and ``np.float64`` are two keys; True and 1 are no types and never get here.
_PARSED: Final[dict[object, DType]] = {}
_REMEMBERED: Final = 256  # classes among them that nobody else holds do not stay for ever
