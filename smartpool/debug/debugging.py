"""Debug mode: a pool that finds out who wrote where nothing of theirs was.

A `DebuggingManager` stands in front of the pool of one device and has its methods. What it adds:

*Guards.* Each block lies between bytes of a known pattern; the one behind begins right after the last
byte that was asked for. They are looked at when the block is freed, and by `check`.
*Poison.* A freed block is filled with another pattern, and looked at before it is reused.
*Quarantine.* So that there is something to see, the freed blocks of the last megabytes are not reused.
*Stacks* of the request and of the free of each block, and a report of what was never freed.

Order. Guards are written on the stream of the request, in the same call, before the caller can queue
anything there. A look waits for the device, so work that was queued before the free is judged; poison is
written while the device is idle, so all work on the freed block that is queued until it leaves the
quarantine is judged, too, whichever the stream.

The pool behind is the ordinary one and sees requests that are larger by the guards. So none of this
costs anything where it is off, and steps, streams and arenas are those of every day. Rejected: a pool
whose bins know of guards (a branch on the quick path, or a second pool), and looking without
waiting, by copies on the device (the error would come when the culprit is long gone).

Frees of destructors only enter a list: they may run in the middle of a driver call. The next request,
free or question looks at them, and raises what it finds before it does anything of its own.
"""

from __future__ import annotations

import operator
import sys
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakMethod

from smartpool.copying import not_copied
from smartpool.debug.exiting import ask_at_exit, held_by_objects
from smartpool.debug.inspection import DebugBlock, Inspector, freed_already, leak_report, points_into
from smartpool.debug_options import DebugOptions
from smartpool.errors import DriverError, SmartPoolError, UnsupportedError
from smartpool.heap.arena import ALIGNMENT, Range
from smartpool.log import LOGGER
from smartpool.pool.critical_section import reentered
from smartpool.request import checked_alignment, checked_size
from smartpool.telemetry.labels import StackLabels, current_label
from smartpool.units import align_up
from smartpool.values import as_integer

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager
    from smartpool.pool.bins import Bin
    from smartpool.telemetry.memory_map import MemoryMap
    from smartpool.telemetry.statistics import MemorySnapshot

__all__ = ["DebuggingManager"]

_PATIENCE_S: Final = 1.0  # with a thread that holds the pool's lock when the program ends
_REMEMBERED: Final = 4096  # freed blocks whose stacks are kept for a double free


class DebuggingManager:
    """The pool of one device in debug mode. What it does not name itself is the pool's behind it.

    Parameters
    ----------
    inner
        The pool behind.
    options
        What to look for.

    Examples
    --------
    >>> import smartpool
    >>> pool = smartpool.SmartPool("cpu", smartpool.SmartPoolConfig(debug=True))
    >>> block = pool.malloc(1000)
    >>> pool.managers[0].driver.write(block + 1000, b"!")
    >>> pool.free(block)
    Traceback (most recent call last):
    smartpool.errors.OverrunError: ...
    >>> pool.close()
    """

    def __init__(self, inner: AdvancedMemoryPoolManager, options: DebugOptions) -> None:
        own = self.__dict__  # everything else that is set is the pool's behind: see `__setattr__`
        own["_inner"] = inner
        own["options"] = options
        own["_live"] = {}
        own["_inners"] = set()
        own["_pending"] = deque()
        own["_quarantine"] = OrderedDict()
        own["_quarantined_bytes"] = 0
        own["_remembered"] = OrderedDict()
        own["_worker"] = 0
        own["_inspector"] = Inspector(inner.driver, options)
        own["_here"] = StackLabels(options.stack_depth).here if options.stack_depth else current_label
        make_room = WeakMethod(self._make_room)
        inner.out_of_memory_callbacks.insert(0, lambda nbytes: _call(make_room, nbytes))
        ask_at_exit(self)

    if TYPE_CHECKING:
        _inner: AdvancedMemoryPoolManager
        options: DebugOptions
        _live: dict[int, DebugBlock]
        _inners: set[int]
        _pending: deque[DebugBlock]
        _quarantine: OrderedDict[int, DebugBlock]
        _quarantined_bytes: int
        _remembered: OrderedDict[int, DebugBlock]
        _worker: int
        _inspector: Inspector
        _here: Any

    def __getattr__(self, name: str) -> Any:
        try:
            inner = self.__dict__["_inner"]
        except KeyError:  # not made in full
            raise AttributeError(name) from None
        return getattr(inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self._inner, name, value)

    def __repr__(self) -> str:
        return f"<DebuggingManager: {len(self._live)} live blocks, {len(self._quarantine)} freed ones>"

    __reduce_ex__ = not_copied

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if finalizing():
            return
        # Nobody holds a block of ours, or us: the pool behind must not wait for what is in quarantine.
        for block in (*self.__dict__.get("_pending", ()), *self.__dict__.get("_quarantine", {}).values()):
            self._inner.drop(block.inner)
        if "_here" in self.__dict__:  # made in full
            # Every buffer holds us, so what is live was requested bare. No look: it would call the driver.
            for word in self._untold(()):
                warnings.warn(word, RuntimeWarning, stacklevel=1)

    # ------------------------------------------------------------------ requests

    def malloc(self, nbytes: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes between guards; as `AdvancedMemoryPoolManager.malloc`.

        Raises
        ------
        MemoryCorruptionError
            When a block that was freed before turns out to have been written outside of its bounds,
            or after its free. Nothing was requested then.
        """
        return self.malloc_aligned(nbytes, ALIGNMENT, stream)

    def malloc_aligned(self, nbytes: int, alignment: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes between guards, aligned; raises as `malloc`."""
        self._look()
        if self._worker == get_ident():
            raise reentered()
        nbytes = checked_size(nbytes)
        inner = self._inner
        if inner.closed:
            raise inner.slow_path.closed_error()
        alignment = checked_alignment(alignment)
        handle = inner.driver.default_stream if stream is None else inner.driver.stream(stream)
        if inner.driver.is_capturing(handle):
            raise UnsupportedError(
                f"expected no capture of stream {handle:#x} on a pool in debug mode, which looks at blocks "
                "and waits for the device; make a pool without debug mode"
            )
        guard = self.options.guard_bytes
        front = align_up(guard, max(alignment, ALIGNMENT))
        back = align_up(nbytes, ALIGNMENT) - nbytes + guard if guard else 0
        address = inner.malloc_aligned(front + nbytes + back, alignment, stream)
        try:
            block = DebugBlock(
                pointer=address + front, nbytes=nbytes, inner=address, front=front, back=back,
                stream=handle, allocated=self._here(), time=time.monotonic(),
            )  # fmt: skip
            with inner.working():
                self._inspector.guard(block)
            self._inners.add(address)
            self._live[block.pointer] = block
        except BaseException:
            self._inners.discard(address)
            inner.free(address)
            raise
        return block.pointer

    def free(self, pointer: int, stream: object = None) -> None:
        """End the block at `pointer`, after a look at its guards.

        Raises
        ------
        MemoryCorruptionError
            When this or another freed block was written where it must not. The block is free.
        DoubleFreeError, UnknownPointerError
            As `AdvancedMemoryPoolManager.free`, with the stacks that are known.
        """
        self.drop(pointer, stream)
        with suppress(DriverError):  # the block is free; who looks next will meet the error
            self._look()

    def drop(self, pointer: int, stream: object = None) -> None:
        """End the block at `pointer`; its guards are looked at later. For destructors."""
        if stream is not None:
            self._inner.driver.stream(stream)  # says what is wrong with it
        try:
            address = operator.index(pointer)
            block = self._live.pop(address)
        except (KeyError, TypeError):
            if self._inner.owns(pointer) and pointer not in self._inners:
                self._inner.free(pointer, stream)  # not requested through us
                return
            raise self.bad_pointer(pointer) from None
        block.freed = self._here()
        self._pending.append(block)

    def record_stream(self, pointer: int, stream: object) -> None:
        """As `AdvancedMemoryPoolManager.record_stream`."""
        self._inner.record_stream(self._block(pointer).inner, stream)

    def stream_of(self, pointer: int) -> int:
        """As `AdvancedMemoryPoolManager.stream_of`."""
        return self._inner.stream_of(self._block(pointer).inner)

    def order_after(self, pointer: int, stream: int) -> None:
        """As `AdvancedMemoryPoolManager.order_after`."""
        self._inner.order_after(self._block(pointer).inner, stream)

    def pieces_of(self, pointer: int) -> tuple[Range, ...]:
        """Return the memory under a block, without its guards."""
        block = self._block(pointer)
        pieces, skip, left = [], block.front, block.nbytes
        for piece in self._inner.pieces_of(block.inner):
            length = min(piece.size - skip, left)
            if length > 0:
                pieces.append(Range(piece.start + skip, length))
                left -= length
            skip = max(0, skip - piece.size)
        return tuple(pieces)

    def owns(self, pointer: int) -> bool:
        """Return whether `pointer` is a live block of this pool."""
        return as_integer(pointer) in self._live

    @property
    def live_bytes(self) -> int:
        """Bytes in live blocks, as requested, without guards and what is in quarantine."""
        return sum(block.nbytes for block in list(self._live.values()))

    def live_blocks(self) -> dict[int, int]:
        """Return address to requested bytes, for every live block."""
        return {pointer: block.nbytes for pointer, block in self._live.copy().items()}

    @property
    def quick_path(self) -> tuple[dict[int, Bin], dict[int, Any]]:
        """No bins: every request comes through `malloc`."""
        return {}, {}

    def begin_capture(self, memory: object, stream: int | None = None) -> None:  # noqa: ARG002
        """Refuse a capture: it forbids to look at blocks."""
        raise UnsupportedError(
            "expected a pool without debug mode for a capture, which forbids looking at blocks; make another"
        )

    # ------------------------------------------------------------------ questions

    def snapshot(self) -> MemorySnapshot:
        """As `AdvancedMemoryPoolManager.snapshot`; guards and quarantine count as live."""
        self._look(quietly=True)
        return self._inner.snapshot()

    def memory_map(self) -> MemoryMap:
        """As `AdvancedMemoryPoolManager.memory_map`; blocks are shown with their guards."""
        self._look(quietly=True)
        return self._inner.memory_map()

    def trim(self, keep_bytes: int = 0, *, wait: bool = False, captures: bool = False) -> int:
        """As `AdvancedMemoryPoolManager.trim`; the quarantine ends with it."""
        self._look()
        self._empty_quarantine()
        self._inspector.raise_found()
        return self._inner.trim(keep_bytes, wait=wait, captures=captures)

    def check(self) -> None:
        """Prove the pool's invariants, and look at the guards of all live blocks and at all freed ones.

        Raises `InvariantError`, or `MemoryCorruptionError` for the first block that was overwritten.
        """
        self._look_at_everything()
        self._inspector.raise_found()
        self._inner.check()

    def leaks(self) -> list[DebugBlock]:
        """Return the live blocks, the oldest first."""
        return sorted(self._live.values(), key=lambda block: block.time)

    def close(self) -> None:
        """Look at everything once more, close the pool behind, and report what was never freed.

        What is live stays valid, as in every pool. Leaks are a warning, which comes first; what was
        overwritten is raised behind it.
        """
        first = not self._inner.closed
        if self._inner.disowned:
            return
        try:
            try:
                self._look(quietly=True)
                with self._at_work():
                    for block in list(self._live.values()) if first else ():
                        self._inspector.check_guards(block)
                self._empty_quarantine()
            finally:
                self._inner.close()
        except BaseException:
            if first:  # the next close is not; it raises what was found
                self._warn_of_leaks()
            raise
        try:
            if first:
                self._warn_of_leaks()
        finally:  # also where warnings are errors
            self._inspector.raise_found()

    def _warn_of_leaks(self) -> None:
        if self.options.leaks and self._live:
            report = leak_report(self._inner.driver.name, self.leaks())
            LOGGER.warning("%s", report)
            warnings.warn(report, RuntimeWarning, stacklevel=3)

    def last_words(self) -> list[str]:
        """Look once more, and return what nobody was told, at the end of a program that did not close."""
        inner = self._inner
        if inner.closed or inner.disowned:
            return self._untold(())
        failure = []
        held = held_by_objects(self)
        # A thread that never comes to its end may hold the lock; the end is not to wait for it.
        if inner.slow_path.section.lock.acquire(timeout=_PATIENCE_S):
            try:
                self._look_at_everything()
            except Exception as error:  # noqa: BLE001 - told, and nobody could catch it
                failure = [f"{inner.driver.name}: debug mode could not look at all blocks: {error}"]
            finally:
                inner.slow_path.section.lock.release()
        else:
            failure = [f"{inner.driver.name}: debug mode did not look: a thread holds the pool's lock"]
        return self._untold(held) + failure

    def _untold(self, held: Container[int]) -> list[str]:
        """Return what nobody was told: what is live and not `held`, and what was found overwritten."""
        words: list[str] = []
        if self._inner.disowned:
            return words
        if self.options.leaks and not self._inner.closed:
            leaks = [block for block in self.leaks() if block.pointer not in held]
            words += [leak_report(self._inner.driver.name, leaks)] if leaks else []
        return words + [str(error) for error in self._inspector.take_found()]

    # ------------------------------------------------------------------ looking

    def _look_at_everything(self) -> None:
        """Look at the guards of all live blocks and at all freed ones; what is found is raised later."""
        self._look(quietly=True)
        with self._at_work():
            for block in list(self._live.values()):
                self._inspector.check_guards(block)
            for block in list(self._quarantine.values()):
                self._inspector.check_poison(block)

    def _look(self, *, quietly: bool = False) -> None:
        """Look at blocks that were freed; raise the first thing found unless told not to."""
        inner = self._inner
        if inner.disowned:  # a forked child: nothing here is ours
            self._pending.clear()
        if self._pending:
            with inner.slow_path.section.lock:
                # In the middle of the pool's own work, or of this: whoever is there looks later.
                if inner.slow_path.section.entered or self._worker:
                    return
                with self._at_work(), inner.driver.beside_capture():
                    self._take_in_pending()
        if not quietly:
            self._inspector.raise_found()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the pool's lock, and refuse what this thread asks for meanwhile: the driver works for us."""
        own = self.__dict__  # not by `__setattr__`: an interrupt may come as a function begins
        with self._inner.slow_path.section.lock:
            if self._worker:
                raise reentered()
            try:
                own["_worker"] = get_ident()
                yield
            finally:
                own["_worker"] = 0

    # A block is in one place after an interrupt, and counted once: what moves it stands on one line, in which
    # CPython looks at no signal.

    def _take_in_pending(self) -> None:
        own, driver = self.__dict__, self._inner.driver
        driver.synchronize()  # whatever the streams that used the blocks
        while self._pending:
            block = self._pending[0]
            self._inspector.check_guards(block)
            self._inspector.poison(block)
            at, size = block.pointer, block.size
            del self._pending[0]; self._quarantine[at] = block; own["_quarantined_bytes"] += size  # fmt: skip # noqa: E702
        driver.synchronize()  # what is let go may be reused on any stream
        room = 0 if self._inner.closed else self.options.quarantine_bytes
        while self._quarantined_bytes > room:
            self._let_go()

    def _let_go(self) -> None:
        """Give the oldest block of the quarantine back to the pool."""
        own = self.__dict__
        at, block = next(iter(self._quarantine.items()))
        size = block.size
        del self._quarantine[at]; own["_quarantined_bytes"] -= size  # fmt: skip # noqa: E702
        try:
            self._inspector.check_poison(block, again=False)  # it leaves: no fill may follow it
        finally:
            self._give_back(block)

    def _give_back(self, block: DebugBlock) -> None:
        self._remembered[block.pointer] = block
        self._remembered.move_to_end(block.pointer)
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        self._inners.discard(block.inner)
        self._inner.free(block.inner)

    def _empty_quarantine(self) -> None:
        with self._at_work():
            while self._quarantine:
                self._let_go()

    def _make_room(self, _: int) -> bool:
        """End the quarantine for a request that would fail otherwise."""
        self._look(quietly=True)
        held = bool(self._quarantine)
        self._empty_quarantine()
        return held

    # ------------------------------------------------------------------ pointers

    def _block(self, pointer: int) -> DebugBlock:
        block = self._live.get(as_integer(pointer) or 0)  # no block begins at 0
        if block is None:
            raise self.bad_pointer(pointer)
        return block

    def bad_pointer(self, pointer: object) -> SmartPoolError:
        """As `AdvancedMemoryPoolManager.bad_pointer`, with the stacks that are known."""
        try:
            address = operator.index(pointer)  # type: ignore[arg-type]
        except TypeError:
            return self._inner.bad_pointer(pointer)
        waiting = {block.pointer: block for block in list(self._pending)}
        block = waiting.get(address) or self._quarantine.get(address) or self._remembered.get(address)
        if block is not None:
            return freed_already(block)
        for other in list(self._live.values()):
            if other.inner <= address < other.inner + other.size:
                return points_into(other, address)
        return self._inner.bad_pointer(pointer)


def _call(method: WeakMethod[Any], nbytes: int) -> bool:
    bound = method()
    return bound is not None and bound(nbytes)
