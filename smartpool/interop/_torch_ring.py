"""Where PyTorch's frees go: a ring of addresses that C code fills and Python empties.

Problem: PyTorch frees a tensor wherever its last reference dies, and that includes the middle of
raising an exception: in ``torch.ones(3) @ torch.ones(4)`` the operands die while the error is on
its way. Code of the interpreter that runs there, as a `ctypes` callback does, loses the error and
crashes the interpreter (seen with Python 3.11 and 3.12). PyTorch also frees on threads that Python
has never seen, and after the interpreter has ended.
Method: the function that PyTorch calls is not Python. It takes the next slot of a ring, stores the
address there and returns: seven instructions, written into memory below. The addresses are given
back to the pool when memory is next asked for, or looked at. It needs no lock of the interpreter,
so a free costs 10 ns instead of a microsecond.
Bound: a ring of 2^20 slots (8 MiB of addresses, touched as it is used). More frees than that without
one request between them would overwrite the oldest, whose blocks then stay taken: a leak, never a
block with two owners. An interrupt (Ctrl-C) that strikes between reading a slot and giving its block
back leaks that block, for the same reason.
Rejected: a `ctypes` callback (above); saving and restoring the error around it (`ctypes` drops it
itself); `Py_AddPendingCall` (takes 32, and calls what it is given).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
import threading
from collections.abc import Callable
from typing import Final

from smartpool.errors import UnsupportedError
from smartpool.forks import renewed

__all__ = ["FreeRing", "ask"]

SLOTS: Final = 1 << 20
_HEADER_BYTES: Final = 64  # the count of frees, on a cache line of its own
_READ_EXECUTE: Final = 1 | 4
_CLEARED: Final = 1024  # bytes of stack: where libffi keeps the result of a callback


class FreeRing:
    """Addresses freed by C code, in order.

    Parameters
    ----------
    give
        Takes an address back. What it raises ends `drain`; the others wait for the next one.

    Attributes
    ----------
    address
        Of the C function ``void free(void *pointer, ...)``. Valid until the process ends.
    slots
        The ring; zero where nothing is waiting.
    cursor
        A list of one: the slot that is filled next, or waits longest.

    Raises
    ------
    UnsupportedError
        Where the machine code below cannot run.
    """

    def __init__(self, give: Callable[[int], None]) -> None:
        if (
            not sys.platform.startswith("linux")
            or platform.machine() not in ("x86_64", "AMD64")
            or sys.maxsize < 1 << 32
        ):
            raise UnsupportedError(
                "expected Linux on x86-64 to be PyTorch's allocator, got "
                f"{sys.platform} on {platform.machine()}; use smartpool.interop.torch.mem_pool instead"
            )
        # Private, so that a forked child has a ring of its own.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, _HEADER_BYTES + 8 * SLOTS, flags=flags)
        self._header = _address_for_good(memory)
        self.slots = memoryview(memory).cast("Q")[_HEADER_BYTES // 8 :]
        self.cursor = [0]
        self.address = _load(_store_function(self._header))
        self._give = give
        self._lock = renewed(self, "_lock", threading.Lock)

    def drain(self) -> None:
        """Give back what is waiting. Returns at once when another thread, or a caller, is at it."""
        lock, taken = self._lock, list[bool]()
        try:
            taken.extend(map(lock.acquire, (False,)))  # in one step of C: an interrupt cannot come in between
            if not taken[0]:
                return
            slots, cursor, give, mask = self.slots, self.cursor, self._give, SLOTS - 1
            at = cursor[0]
            while pointer := slots[at]:
                slots[at] = 0
                cursor[0] = at = (at + 1) & mask
                give(pointer)
        finally:
            if any(taken):
                lock.release()


def _store_function(header: int) -> bytes:
    """Return x86-64 code of ``void f(void *pointer)`` by the System V calling convention.

    Taking a slot and filling it are two steps, so a reader may find a slot that is taken and still
    zero: it stops there, and comes back.
    """
    return b"".join(
        (
            b"\xf3\x0f\x1e\xfa",  # endbr64
            b"\x48\xb8" + struct.pack("<Q", header),  # mov  rax, header
            b"\x41\xb8\x01\x00\x00\x00",  # mov  r8d, 1
            b"\xf0\x4c\x0f\xc1\x00",  # lock xadd [rax], r8
            b"\x41\x81\xe0" + struct.pack("<I", SLOTS - 1),  # and  r8d, SLOTS - 1
            b"\x4a\x89\x7c\xc0" + struct.pack("<B", _HEADER_BYTES),  # mov  [rax + r8 * 8 + 64], rdi
            b"\xc3",  # ret
        )
    )


def ask(first: int, second: int, throw: int, room: int) -> int:
    """Return the address of C code that calls `first`, and `second` when that gave a null pointer.

    ``void *f(size_t size, int device, void *stream)``, and so are the two. A size of 0 is asked once. An
    odd answer is no memory, but one more than the address of a C++ exception, which is thrown by `throw`.
    Its type and its destructor are the last two words of its `room` bytes.

    A `ctypes` callback in which an exception strikes leaves its result unwritten: what it returns is what
    happens to lie on the stack, commonly the last answer. So the stack below is cleared first.
    """
    clear = b"".join(
        (
            b"\x48\x8d\xbc\x24" + struct.pack("<i", -_CLEARED),  # lea rdi, [rsp - 1024]
            b"\x31\xc0",  # xor eax, eax
            b"\xb9" + struct.pack("<I", _CLEARED // 8),  # mov ecx, 128
            b"\xf3\x48\xab",  # rep stosq
            b"\x48\x8b\x7c\x24\x10",  # mov rdi, [rsp + 16]
        )
    )
    call_second = b"".join(
        (
            b"\x48\x8b\x74\x24\x08",  # mov rsi, [rsp + 8]
            b"\x48\x8b\x14\x24",  # mov rdx, [rsp]
            b"\x48\xb8" + struct.pack("<Q", second),  # mov rax, second
            b"\xff\xd0",  # call rax
        )
    )
    return _load(
        b"".join(
            (
                b"\xf3\x0f\x1e\xfa",  # endbr64
                b"\x57\x56\x52",  # push rdi; push rsi; push rdx (and the stack is aligned)
                clear,
                b"\x48\xb8" + struct.pack("<Q", first),  # mov rax, first
                b"\xff\xd0",  # call rax
                b"\x48\x8b\x7c\x24\x10",  # mov rdi, [rsp + 16]
                b"\x48\x85\xc0\x75" + struct.pack("<B", 5 + len(call_second)),  # test rax, rax; jnz answer
                b"\x48\x85\xff\x74" + struct.pack("<B", len(call_second)),  # test rdi, rdi; jz answer
                call_second,
                # answer:
                b"\x48\x83\xc4\x18",  # add rsp, 24: from here on this frame is gone
                b"\xa8\x01\x75\x01",  # test al, 1; jnz thrown
                b"\xc3",  # ret
                # thrown:
                b"\x48\x8d\x78\xff",  # lea rdi, [rax - 1]
                b"\x48\x8b\xb7" + struct.pack("<i", room - 16),  # mov rsi, [rdi + room - 16]
                b"\x48\x8b\x97" + struct.pack("<i", room - 8),  # mov rdx, [rdi + room - 8]
                b"\x48\xb8" + struct.pack("<Q", throw),  # mov rax, throw
                b"\xff\xe0",  # jmp rax
            )
        )
    )


def _load(code: bytes) -> int:
    """Return the address of `code`, ready to run."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(code)
    address = _address_for_good(memory)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(address, mmap.PAGESIZE, _READ_EXECUTE):
        raise UnsupportedError(
            f"expected the system to let code run that was written to memory, got errno {ctypes.get_errno()}"
            "; use smartpool.interop.torch.mem_pool instead"
        )
    return address


def _address_for_good(memory: mmap.mmap) -> int:
    """Return the address of `memory`, which is never given back."""
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(view))
    return ctypes.addressof(view)
