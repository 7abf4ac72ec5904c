"""The dictionary of the CUDA array interface, read back by NumPy's interface of the same form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.dlpack import DType, cuda_array_interface
from smartpool.dlpack.dtype import _BY_NAME
from smartpool.errors import ArrayInterfaceError

NATIVE = [dtype for dtype in _BY_NAME.values() if dtype.native]


class _Readable:
    """NumPy reads the same keys, under another name and without the stream."""

    def __init__(self, interface: dict[str, object]) -> None:
        self.__array_interface__ = {key: value for key, value in interface.items() if key != "stream"}


@given(
    dtype=st.sampled_from(NATIVE), extent=st.integers(0, 4), transpose=st.booleans(), read_only=st.booleans()
)
def test_the_description_reads_back(*, dtype: DType, extent: int, transpose: bool, read_only: bool) -> None:
    array = np.arange(extent * 3).reshape(extent, 3).astype(dtype.carrier)
    shown = array.T if transpose else array
    strides = tuple(stride // array.itemsize for stride in shown.strides) if transpose else None
    interface = cuda_array_interface(
        pointer=array.ctypes.data, shape=shown.shape, dtype=dtype, strides=strides, read_only=read_only
    )
    assert interface["version"] == 3
    if array.size:
        read = np.asarray(_Readable(interface))
        assert read.dtype == dtype.carrier
        assert read.flags.writeable is not read_only
        np.testing.assert_array_equal(read, shown)
    else:
        assert interface["data"] == (0, read_only)


@pytest.mark.parametrize(("stream", "written"), [(None, None), (0, 1), (1, 1), (2, 2), (0x55D0, 0x55D0)])
def test_the_stream_is_never_written_as_0(stream: int | None, written: int | None) -> None:
    interface = cuda_array_interface(pointer=4096, shape=(), dtype=DType.parse("int8"), stream=stream)
    assert interface["stream"] == written
    assert interface["shape"] == ()


@pytest.mark.parametrize("name", [name for name, dtype in _BY_NAME.items() if not dtype.native])
def test_types_without_a_type_string_have_no_interface(name: str) -> None:
    class Buffer:
        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            return cuda_array_interface(pointer=4096, shape=(2,), dtype=DType.parse(name))

    assert not hasattr(Buffer(), "__cuda_array_interface__")
    with pytest.raises(ArrayInterfaceError, match=f"{name}.*from_dlpack"):
        _ = Buffer().__cuda_array_interface__
