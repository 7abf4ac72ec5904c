from __future__ import annotations

import ctypes

import numpy as np
from waiting import PATIENCE_S

from smartpool.testing import (
    Invariant,
    check_allocator,
    host_read,
    host_write,
)


def test_memory_of_this_process_by_address():
    """An allocator of real addresses, the C library's; what it does with bad frees is not for us to try."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]

    def malloc(nbytes):
        if nbytes > 1 << 40:
            raise MemoryError(nbytes)
        return libc.malloc(nbytes) or 0

    report = check_allocator(
        lambda: (malloc, libc.free),
        alignment=16,
        max_bytes=1 << 16,
        bad_frees="undefined",
        bad_sizes="undefined",
        read=host_read,
        write=host_write,
        examples=20,
        seconds=PATIENCE_S,
    )
    assert report.checked[Invariant.CONTENTS] > 500


def test_numpy_arrays_that_free_themselves():
    def malloc(nbytes):
        return np.empty(nbytes, np.uint8)

    report = check_allocator(
        lambda: (malloc, lambda block: None),
        max_bytes=10_000,
        bad_frees="undefined",
        bad_sizes="undefined",
        errors=(MemoryError, ValueError),
        examples=20,
        seconds=PATIENCE_S,
    )
    assert report.checked[Invariant.CONTENTS] > 500
