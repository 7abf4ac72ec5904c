"""What PyTorch calls for memory: native code before the pool, compiled at run time.

Problem: PyTorch calls its allocator from C++, on any thread, some hundred thousand times a second where a
program is bound by the host. A call into Python costs a microsecond and the interpreter's lock. And a tensor
may die where no Python may run: in the middle of raising an exception (``torch.ones(3) @ torch.ones(4)``),
on threads that Python has never seen, after the interpreter has ended.
Method: two functions in LLVM's intermediate language, compiled by `llvmlite` for the processor at hand in a
twentieth of a second. A free pushes the address on a stack of its size and stream; a request pops one, and
enters Python only where its stack is empty. What lies in the stacks is live to the pool, until `Front.drain`
gives it back: all of it before memory grows, is trimmed, looked at, or refused; blocks of a size that the
pool places by address already before any other request for such a one, so that stacks keep no more
memory than the pool's own deferred frees would. What no stack takes goes to a list that every request
empties: blocks of other devices, of streams that may be destroyed, and what `record_stream` was called for.
A lock in memory, taken by compare-and-swap, is held for some ten instructions; who finds it taken spins,
then yields.
Out of memory is thrown by the function itself: Python makes the exception, answers with its odd address, and
C++ unwinds through compiled code alone (`smartpool.interop._torch_rescue`).
Bound: some 12 ns a request or free that a stack serves, O(1); a free looks through the live blocks that are
marked, of which 1,024 have room: one more turns the stacks off for good. The list takes 2^20 frees between
two requests; what is more than that stays taken, a leak, never a block with two owners.
Rejected: Numba, whose import alone takes half a second; a `ctypes` callback for frees, which loses the
exception that is on its way and crashes the interpreter (seen with Python 3.11 and 3.12); machine code
written by hand, which was here before, for one processor.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import threading
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Final

from smartpool.forks import call_in_children, renewed
from smartpool.interop._frameworks import framework, keep_for_good

__all__ = ["Front"]

_KINDS: Final = 2048
"""Pairs of a size and a stream that have a stack; when three quarters are taken, all are emptied."""
_CROWDED: Final = _KINDS * 3 // 4
_DEPTH: Final = 64
_LISTED: Final = 1 << 20
_NOTED: Final = 1024
_STREAMS: Final = 128
_CLEARED: Final = 1024  # bytes of stack: where libffi keeps the result of a callback
_BUFFER: Final = 4096

# Words of the front's memory. Counts first; those that Python looks at are read without the lock.
_LOCK, _ON, _LARGE, _SMALL, _LIST, _MARKED, _USED, _LARGE_USED, _ALLOWED, _BUFFERED = (
    8 * line
    for line in range(10)  # each on a cache line of its own
)
_COUNTS: Final = 8 * 16
_PLACES: Final = {  # words of each table, behind the counts
    "buckets": 2 * _KINDS,  # hash table: 0, or the number of a kind plus one
    "sizes": _KINDS,
    "streams": _KINDS,
    "counts": _KINDS,
    "large_kinds": _KINDS,
    "allowed": _STREAMS,
    "marked": _NOTED,
    "list": _LISTED,
    "stacks": _KINDS * _DEPTH,
}

_CODE: Final = """
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define internal void @enter() {
begin:
  br label %try
try:
  %spun = phi i64 [0, %begin], [%next, %again], [0, %yielded]
  %pair = cmpxchg ptr LOCK, i64 0, i64 1 acquire monotonic
  %mine = extractvalue {i64, i1} %pair, 1
  br i1 %mine, label %done, label %again
again:
  %next = add i64 %spun, 1
  %long = icmp ugt i64 %next, 200
  br i1 %long, label %yielded, label %try
yielded:
  %ignored = call i32 inttoptr (i64 YIELD to ptr)()
  br label %try
done:
  ret void
}

define internal void @leave() alwaysinline {
  store atomic i64 0, ptr LOCK release, align 8
  ret void
}

define internal void @count(ptr %what, i64 %change) alwaysinline {
  %old = load i64, ptr %what
  %new = add i64 %old, %change
  store atomic i64 %new, ptr %what monotonic, align 8
  ret void
}

define internal ptr @counter_of(i64 %size) alwaysinline {
  %large = icmp uge i64 %size, LIMIT
  %counter = select i1 %large, ptr LARGE, ptr SMALL
  ret ptr %counter
}

; The number of the kind, or -1: there is none, and none is to be made or can be.
define internal i64 @find(i64 %size, i64 %stream, i1 %make) {
begin:
  %a = mul i64 %stream, -7046029254386353131
  %b = xor i64 %a, %size
  %c = mul i64 %b, -7046029254386353131
  %first = lshr i64 %c, SHIFT
  br label %look
look:
  %i = phi i64 [0, %begin], [%further, %other]
  %sum = add i64 %first, %i
  %place = and i64 %sum, MASK
  %bucket = getelementptr i64, ptr BUCKETS, i64 %place
  %found = load i64, ptr %bucket
  %empty = icmp eq i64 %found, 0
  br i1 %empty, label %absent, label %compare
compare:
  %kind = sub i64 %found, 1
  %size_at = getelementptr i64, ptr SIZES, i64 %kind
  %its_size = load i64, ptr %size_at
  %stream_at = getelementptr i64, ptr STREAMS, i64 %kind
  %its_stream = load i64, ptr %stream_at
  %same_size = icmp eq i64 %its_size, %size
  %same_stream = icmp eq i64 %its_stream, %stream
  %same = and i1 %same_size, %same_stream
  br i1 %same, label %yes, label %other
other:
  %further = add i64 %i, 1
  br label %look
yes:
  ret i64 %kind
absent:
  br i1 %make, label %room, label %no
room:
  %used = load i64, ptr USED
  %full = icmp uge i64 %used, MOST_USED
  br i1 %full, label %no, label %streams
streams:
  %k = phi i64 [0, %room], [%k1, %next_stream]
  %allowed = load i64, ptr ALLOWED
  %over = icmp uge i64 %k, %allowed
  br i1 %over, label %no, label %check
check:
  %one_at = getelementptr i64, ptr ALLOWED_STREAMS, i64 %k
  %one = load i64, ptr %one_at
  %is = icmp eq i64 %one, %stream
  br i1 %is, label %new, label %next_stream
next_stream:
  %k1 = add i64 %k, 1
  br label %streams
new:
  %number = add i64 %used, 1
  store i64 %number, ptr %bucket
  store i64 %number, ptr USED
  %new_size = getelementptr i64, ptr SIZES, i64 %used
  store i64 %size, ptr %new_size
  %new_stream = getelementptr i64, ptr STREAMS, i64 %used
  store i64 %stream, ptr %new_stream
  %new_count = getelementptr i64, ptr COUNTS, i64 %used
  store i64 0, ptr %new_count
  %large = icmp uge i64 %size, LIMIT
  br i1 %large, label %new_large, label %made
new_large:
  %larges = load i64, ptr LARGE_USED
  %large_at = getelementptr i64, ptr LARGE_KINDS, i64 %larges
  store i64 %used, ptr %large_at
  %larges1 = add i64 %larges, 1
  store i64 %larges1, ptr LARGE_USED
  br label %made
made:
  ret i64 %used
no:
  ret i64 -1
}

; An address from the stack of a kind, or 0.
define internal i64 @pop(i64 %kind) {
  %count_at = getelementptr i64, ptr COUNTS, i64 %kind
  %have = load i64, ptr %count_at
  %none = icmp eq i64 %have, 0
  br i1 %none, label %no, label %yes
yes:
  %left = sub i64 %have, 1
  store i64 %left, ptr %count_at
  %base = mul i64 %kind, DEPTH
  %index = add i64 %base, %left
  %at = getelementptr i64, ptr STACKS, i64 %index
  %address = load i64, ptr %at
  %size_at = getelementptr i64, ptr SIZES, i64 %kind
  %size = load i64, ptr %size_at
  %counter = call ptr @counter_of(i64 %size)
  call void @count(ptr %counter, i64 -1)
  ret i64 %address
no:
  ret i64 0
}

; A callback in which an exception strikes leaves its result unwritten: what it returns is what happens
; to lie on the stack, commonly the last answer. So the stack below is cleared first.
define internal void @clear() noinline {
  %below = alloca i8, i64 CLEARED
  call void @llvm.memset.p0.i64(ptr %below, i8 0, i64 CLEARED, i1 true)
  ret void
}

; Where the address is among the marked ones, or -1.
define internal i64 @find_mark(i64 %address, i64 %marks) {
begin:
  br label %search
search:
  %i = phi i64 [0, %begin], [%i1, %next]
  %over = icmp uge i64 %i, %marks
  br i1 %over, label %absent, label %compare
compare:
  %at = getelementptr i64, ptr MARKS, i64 %i
  %one = load i64, ptr %at
  %is = icmp eq i64 %one, %address
  br i1 %is, label %found, label %next
next:
  %i1 = add i64 %i, 1
  br label %search
found:
  ret i64 %i
absent:
  ret i64 -1
}

define i64 @allocate(i64 %size, i32 %device, i64 %stream) uwtable {
begin:
  %on = load atomic i64, ptr ON monotonic, align 8
  %is_on = icmp eq i64 %on, 1
  %here = icmp eq i32 %device, DEVICE
  %quick = and i1 %is_on, %here
  br i1 %quick, label %look, label %ask
look:
  call void @enter()
  %still_on = load i64, ptr ON
  %open = icmp eq i64 %still_on, 1
  br i1 %open, label %find, label %miss
find:
  %kind = call i64 @find(i64 %size, i64 %stream, i1 false)
  %known = icmp sge i64 %kind, 0
  br i1 %known, label %take, label %miss
take:
  %hit = call i64 @pop(i64 %kind)
  %has = icmp ne i64 %hit, 0
  br i1 %has, label %served, label %miss
served:
  call void @leave()
  ret i64 %hit
miss:
  call void @leave()
  br label %ask
ask:
  call void @clear()
  %first = call i64 inttoptr (i64 FIRST to ptr)(i64 %size, i32 %device, i64 %stream)
  %null = icmp eq i64 %first, 0
  %some = icmp ne i64 %size, 0
  %retry = and i1 %null, %some
  br i1 %retry, label %again, label %answer
again:
  %second = call i64 inttoptr (i64 SECOND to ptr)(i64 %size, i32 %device, i64 %stream)
  br label %answer
answer:
  %got = phi i64 [%first, %ask], [%second, %again]
  %odd = trunc i64 %got to i1
  br i1 %odd, label %thrown, label %given
given:
  ret i64 %got
thrown:
  %exception = sub i64 %got, 1
  %error = inttoptr i64 %exception to ptr
  %kind_at = getelementptr i8, ptr %error, i64 KIND_AT
  %kind_of = load ptr, ptr %kind_at
  %end_at = getelementptr i8, ptr %error, i64 END_AT
  %end = load ptr, ptr %end_at
  call void inttoptr (i64 THROW to ptr)(ptr %error, ptr %kind_of, ptr %end)
  ret i64 0
}

define void @release(i64 %address, i64 %size, i32 %device, i64 %stream) {
begin:
  call void @enter()
  %marks = load i64, ptr MARKED
  %mark = call i64 @find_mark(i64 %address, i64 %marks)
  %marked = icmp sge i64 %mark, 0
  br i1 %marked, label %forget, label %unmarked
forget:
  %at = getelementptr i64, ptr MARKS, i64 %mark
  %last = sub i64 %marks, 1
  %last_at = getelementptr i64, ptr MARKS, i64 %last
  %moved = load i64, ptr %last_at
  store i64 %moved, ptr %at
  store i64 %last, ptr MARKED
  br label %listed
unmarked:
  %on = load i64, ptr ON
  %is_on = icmp eq i64 %on, 1
  %here = icmp eq i32 %device, DEVICE
  %quick = and i1 %is_on, %here
  br i1 %quick, label %find, label %listed
find:
  %kind = call i64 @find(i64 %size, i64 %stream, i1 true)
  %known = icmp sge i64 %kind, 0
  br i1 %known, label %push, label %listed
push:
  %count_at = getelementptr i64, ptr COUNTS, i64 %kind
  %have = load i64, ptr %count_at
  %full = icmp uge i64 %have, DEPTH
  br i1 %full, label %listed, label %stacked
stacked:
  %base = mul i64 %kind, DEPTH
  %index = add i64 %base, %have
  %slot = getelementptr i64, ptr STACKS, i64 %index
  store i64 %address, ptr %slot
  %more = add i64 %have, 1
  store i64 %more, ptr %count_at
  %counter = call ptr @counter_of(i64 %size)
  call void @count(ptr %counter, i64 1)
  br label %done
listed:
  %waiting = load i64, ptr LIST
  %lost = icmp uge i64 %waiting, LISTED
  br i1 %lost, label %done, label %append
append:
  %list_at = getelementptr i64, ptr LIST_AT, i64 %waiting
  store i64 %address, ptr %list_at
  call void @count(ptr LIST, i64 1)
  br label %done
done:
  call void @leave()
  ret void
}

; Move waiting addresses to a buffer of BUFFER words, and return how many: of the list, of large kinds, and
; where all are meant of the small ones.
define i64 @collect(ptr %buffer, i64 %all) {
begin:
  call void @enter()
  br label %from_list
from_list:
  %n = phi i64 [0, %begin], [%n1, %one_more]
  %waiting = load i64, ptr LIST
  %none = icmp eq i64 %waiting, 0
  %full = icmp uge i64 %n, BUFFER
  %stop = or i1 %none, %full
  br i1 %stop, label %stacks, label %one_more
one_more:
  %left = sub i64 %waiting, 1
  %list_at = getelementptr i64, ptr LIST_AT, i64 %left
  %listed = load i64, ptr %list_at
  store atomic i64 %left, ptr LIST monotonic, align 8
  %out = getelementptr i64, ptr %buffer, i64 %n
  store i64 %listed, ptr %out
  %n1 = add i64 %n, 1
  br label %from_list
stacks:
  %every = icmp ne i64 %all, 0
  %used = load i64, ptr USED
  %larges = load i64, ptr LARGE_USED
  %kinds = select i1 %every, i64 %used, i64 %larges
  br label %kind
kind:
  %k = phi i64 [0, %stacks], [%k1, %next_kind]
  %m = phi i64 [%n, %stacks], [%p, %next_kind]
  %over = icmp uge i64 %k, %kinds
  br i1 %over, label %emptied, label %which
which:
  %large_at = getelementptr i64, ptr LARGE_KINDS, i64 %k
  %large = load i64, ptr %large_at
  %number = select i1 %every, i64 %k, i64 %large
  br label %from_stack
from_stack:
  %p = phi i64 [%m, %which], [%p1, %took]
  %no_room = icmp uge i64 %p, BUFFER
  br i1 %no_room, label %done, label %take
take:
  %address = call i64 @pop(i64 %number)
  %end = icmp eq i64 %address, 0
  br i1 %end, label %next_kind, label %took
took:
  %to = getelementptr i64, ptr %buffer, i64 %p
  store i64 %address, ptr %to
  %p1 = add i64 %p, 1
  br label %from_stack
next_kind:
  %k1 = add i64 %k, 1
  br label %kind
emptied:
  %crowded = icmp uge i64 %used, CROWDED
  %renew = and i1 %every, %crowded
  br i1 %renew, label %forget_kinds, label %done
forget_kinds:
  call void @llvm.memset.p0.i64(ptr BUCKETS, i8 0, i64 BUCKET_BYTES, i1 false)
  store i64 0, ptr USED
  store i64 0, ptr LARGE_USED
  br label %done
done:
  %total = phi i64 [%m, %emptied], [%m, %forget_kinds], [%p, %from_stack]
  store i64 %total, ptr BUFFERED
  call void @leave()
  ret i64 %total
}

; Let the block's free go to the list. What finds no room turns the stacks off for good.
define void @mark(i64 %address) {
begin:
  call void @enter()
  %marks = load i64, ptr MARKED
  %mark = call i64 @find_mark(i64 %address, i64 %marks)
  %marked = icmp sge i64 %mark, 0
  br i1 %marked, label %done, label %absent
absent:
  %full = icmp uge i64 %marks, NOTED
  br i1 %full, label %off, label %note
note:
  %at = getelementptr i64, ptr MARKS, i64 %marks
  store i64 %address, ptr %at
  %more = add i64 %marks, 1
  store i64 %more, ptr MARKED
  br label %done
off:
  store atomic i64 2, ptr ON monotonic, align 8
  br label %done
done:
  call void @leave()
  ret void
}

define void @switch(i64 %on) {
begin:
  call void @enter()
  %was = load i64, ptr ON
  %for_good = icmp eq i64 %was, 2
  br i1 %for_good, label %done, label %set
set:
  store atomic i64 %on, ptr ON monotonic, align 8
  br label %done
done:
  call void @leave()
  ret void
}
"""


class Front:
    """The functions that PyTorch calls, and what waits in them.

    Parameters
    ----------
    device
        Whose blocks may be stacked: a device number.
    limit
        Bytes: the size from which on the pool places blocks by address.
    give
        Takes an address back. What it raises ends `drain`; the others wait for the next one.
    first, second
        Addresses of ``void *f(ssize_t size, int device, void *stream)``, which a request that no stack serves
        calls; the second where the first answered with a null pointer. An odd answer is no memory, but
        one more than the address of a C++ exception, which is thrown.
    throw
        The address of ``__cxa_throw``.
    room
        Bytes of an exception: its type and its destructor are the last two words of them.

    Attributes
    ----------
    allocate, release
        Addresses of the functions. Valid until the process ends.

    Raises
    ------
    MissingPackageError
        Without `llvmlite`.
    """

    def __init__(
        self,
        device: int,
        limit: int,
        give: Callable[[int], None],
        *,
        first: int,
        second: int,
        throw: int,
        room: int,
    ) -> None:
        places = _places()
        # Private, so that a forked child has one of its own.
        memory = mmap.mmap(-1, 8 * places["end"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = _address_for_good(memory)
        self._words = memoryview(memory).cast("q")
        self._allowed = places["allowed"]
        self._give = give
        self._lock = renewed(self, "_lock", threading.Lock)
        engine = _compiled(_written(base, device, limit, first, second, throw, room))
        self.allocate, self.release = (engine.get_function_address(name) for name in ("allocate", "release"))
        word, function = ctypes.c_int64, ctypes.CFUNCTYPE
        self._collect = function(word, ctypes.c_void_p, word)(engine.get_function_address("collect"))
        self._mark = function(None, word)(engine.get_function_address("mark"))
        self._switch = function(None, word)(engine.get_function_address("switch"))
        self._buffer = (word * _BUFFER)()
        call_in_children(self, Front._end)

    @property
    def stacked(self) -> int:
        """How many addresses lie in the stacks."""
        return self._words[_LARGE] + self._words[_SMALL]

    def admit(self, streams: Iterable[int]) -> None:
        """Let blocks of these streams be stacked: they are never destroyed."""
        words, place = self._words, self._allowed
        for stream in streams:
            count = words[_ALLOWED]
            signed = ctypes.c_int64(stream).value
            if count < _STREAMS and signed not in words[place : place + count]:
                words[place + count] = signed
                words[_ALLOWED] = count + 1  # last: the functions look at it

    def mark(self, address: int) -> None:
        """Let the free of a block reach the pool: another stream uses it."""
        self._mark(address)

    def switch(self, *, on: bool) -> None:
        """Let requests be served from the stacks, or let every one reach the pool."""
        self._switch(int(on))
        if not on:
            self.drain(everything=True)

    def drain(self, *, everything: bool = False) -> None:
        """Give back what is waiting, with `everything` what lies in the stacks of small sizes too.

        Returns at once when another thread, or a caller, is at it.
        """
        words = self._words
        everything = everything or words[_USED] >= _CROWDED
        if not (words[_LIST] or words[_LARGE] or (everything and words[_SMALL]) or words[_BUFFERED]):
            return
        lock, taken = self._lock, list[bool]()
        try:
            taken.extend(map(lock.acquire, (False,)))  # in one step of C: an interrupt cannot come in between
            if not taken[0]:
                return
            give, buffer = self._give, self._buffer
            while True:
                while count := words[_BUFFERED]:
                    words[_BUFFERED] = count - 1
                    give(buffer[count - 1])
                if not self._collect(buffer, everything):
                    return
        finally:
            if any(taken):
                lock.release()

    def _end(self) -> None:
        """Serve nothing any more: in a forked child, where the thread that held the lock may not be."""
        self._words[_ON] = 2
        self._words[_LOCK] = 0


def _places() -> dict[str, int]:
    """Return the first word of each table, and the end."""
    return dict(zip([*_PLACES, "end"], accumulate(_PLACES.values(), initial=_COUNTS), strict=True))


def _written(  # noqa: PLR0917 - what the code is of, in the order of `Front`
    base: int, device: int, limit: int, first: int, second: int, throw: int, room: int
) -> str:
    """Return the code with the addresses and numbers in it."""

    def word(index: int) -> str:
        return f"inttoptr (i64 {base + 8 * index} to ptr)"

    places = _places()
    values = {
        "LOCK": word(_LOCK), "ON": word(_ON), "LARGE": word(_LARGE), "SMALL": word(_SMALL),
        "LIST": word(_LIST), "MARKED": word(_MARKED), "USED": word(_USED), "BUFFERED": word(_BUFFERED),
        "LARGE_USED": word(_LARGE_USED),
        "ALLOWED": word(_ALLOWED), "BUCKETS": word(places["buckets"]), "SIZES": word(places["sizes"]),
        "STREAMS": word(places["streams"]), "COUNTS": word(places["counts"]),
        "LARGE_KINDS": word(places["large_kinds"]), "ALLOWED_STREAMS": word(places["allowed"]),
        "MARKS": word(places["marked"]), "LIST_AT": word(places["list"]), "STACKS": word(places["stacks"]),
        "YIELD": _yield_address(), "FIRST": first, "SECOND": second, "THROW": throw, "DEVICE": device,
        "LIMIT": limit, "DEPTH": _DEPTH, "LISTED": _LISTED, "NOTED": _NOTED, "CLEARED": _CLEARED,
        "BUFFER": _BUFFER, "MASK": 2 * _KINDS - 1, "SHIFT": 64 - (2 * _KINDS).bit_length() + 1,
        "MOST_USED": _KINDS, "CROWDED": _CROWDED, "BUCKET_BYTES": 16 * _KINDS,
        "KIND_AT": room - 16, "END_AT": room - 8,
    }  # fmt: skip
    lines = []
    for line in _CODE.splitlines():
        parts = re.split(r"\b([A-Z][A-Z_]+)\b", line.partition(";")[0])
        lines.append("".join(str(values.get(part, part)) for part in parts))
    return "\n".join(lines)


def _yield_address() -> int:
    address = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
    assert address is not None
    return address


def _compiled(code: str) -> Any:
    """Return the engine that holds the code, compiled; it is never given back."""
    llvm = framework("llvmlite.binding", install="install llvmlite, this package's extra 'torch'")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(code)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2, jit=True)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    keep_for_good(engine)
    return engine


def _address_for_good(memory: mmap.mmap) -> int:
    """Return the address of `memory`, which is never given back."""
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    keep_for_good(view)
    return ctypes.addressof(view)
