"""Sleep and wake: physical memory goes back to the device while every address stays.

Problem: a process that shares its device with others is to give memory back though blocks are live, and
tensors and captured graphs hold their addresses. Method: the contents are copied elsewhere, or dropped; then
the chunks are unmapped and given back, and their mappings stay in the books without a chunk. A wake makes
chunks, maps them at the same addresses, and copies the contents back. Windows sleep with the chunks that
they show.

Failure. A *section* (the heap, or the memory of one tag) is asleep from the moment its contents are kept and
until they are all back: one flag, set and cleared in one step. Whatever is broken off in between is asleep,
each mapping says what is known of it, and another `sleep` or `wake` goes on from there. Before that moment
nothing was changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Literal

from smartpool.errors import (
    AsleepError,
    CaptureError,
    DriverError,
    DriverOutOfMemoryError,
    InvalidRequestError,
    OutOfMemoryError,
    StepError,
    UnsupportedError,
)
from smartpool.heap.arena import Range
from smartpool.heap.elastic import ElasticHeap
from smartpool.heap.mappings import Mapping, Mappings, State
from smartpool.pool.slow_path import SlowPath
from smartpool.sleep.apart import Kind
from smartpool.sleep.contents import Contents, HostMemory, keep_in_file, keep_on_host
from smartpool.telemetry.labels import current_label
from smartpool.units import format_size

__all__ = ["HEAP", "Keep", "Sleep", "SleepOutcome", "SleepStatistics"]

Keep = Literal["host", "disk", "nothing"]

HEAP: Final = ""
"""The name of the section that is not a tag's: everything else."""
_KEEPS: Final = ("host", "disk", "nothing")
_EVERYTHING: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class SleepOutcome:
    """What one `sleep` or `wake` did.

    Attributes
    ----------
    bytes
        Physical bytes that went back to the device, or came from it.
    kept_bytes
        Bytes of contents that were kept, or brought back.
    seconds
        How long it took.
    by_tag
        `bytes` of each tag; ``""`` is what has no tag of its own.
    """

    bytes: int
    kept_bytes: int
    seconds: float
    by_tag: dict[str, int]


@dataclass(slots=True)
class SleepStatistics:
    """Counts over the life of a pool, and what sleeps now."""

    sleeps: int = 0
    wakes: int = 0
    asleep_bytes: int = 0


class _Section:
    """The heap, or the memory of one tag."""

    def __init__(self, name: str, pool: SlowPath, kind: Kind | None) -> None:
        self.name = name
        self.kind = kind
        self.asleep = False
        self.contents: Contents | None = None
        self.kept_bytes = 0
        self._pool = pool
        self._links: list[tuple[Mapping, Mapping]] = []  # an alias, and the primary mapping of its chunk

    def _heap(self) -> ElasticHeap:
        heap: object = self._pool.heap
        assert isinstance(heap, ElasticHeap)
        return heap

    @property
    def books(self) -> Sequence[Mappings]:
        return (self.kind.mappings,) if self.kind else self._heap().books()

    @property
    def held_bytes(self) -> int:
        return self.books[0].held_bytes

    @property
    def missing_bytes(self) -> int:
        return sum(mapping.size for mapping in self.books[0].table if mapping.state is State.ASLEEP)

    def make_idle(self) -> None:
        """Give back what nobody uses. The device is idle."""
        if self.kind:
            self.kind.release_idle()
            return
        pool = self._pool
        pool.ask_for_way()
        pool.touch_every_bin()
        pool.flush()
        pool.release_idle(_EVERYTHING, wait=True)

    def ranges(self) -> list[Range]:
        return self.kind.blocks() if self.kind else self._heap().live_ranges()

    def fall_asleep(self) -> None:
        """From here on the section is asleep, whatever becomes of its memory."""
        primary = {mapping.chunk: mapping for mapping in self.books[0].table}
        self._links = [(alias, primary[alias.chunk]) for book in self.books[1:] for alias in book.table]
        if self.kind:
            self.kind.asleep = True
        else:
            for bins in list(self._pool.bins_of.values()):
                bins.clear()  # what is freed into those that are held is not met by a request
        self.asleep = True
        for book in self.books:
            for mapping in book.table:
                mapping.kept = True

    def lay_down(self) -> None:
        try:
            for book in reversed(self.books):  # aliases first
                book.lay_down(book.table)
        finally:
            self.relink()

    def get_up(self) -> None:
        self.books[0].get_up(self.books[0].table)
        for book in self.books[1:]:
            book.get_up([alias for alias, _ in self._links], [mapping.chunk for _, mapping in self._links])
        self.relink()

    def relink(self) -> None:
        """Let aliases and windows know which chunks they show now."""
        for alias, mapping in self._links:
            alias.chunk = mapping.chunk
        if not self.kind:
            self._heap().windows.relink()

    def awake(self) -> None:
        """Clear the flag; the rest can be repeated."""
        self.asleep = False
        self.settle()

    def settle(self) -> None:
        """Make follow from the flag what follows from it."""
        if self.kind:
            self.kind.asleep = self.asleep
        for book in self.books:
            for mapping in book.table:
                mapping.kept = self.asleep
        if self.asleep:
            self.relink()
            return
        self._links = []
        if not self.kind:
            self._heap().windows.settle()  # aliases of windows that ended meanwhile
        if self.contents is not None:
            self.contents.discard()
            self.contents = None


class Sleep:
    """What sleeps of one pool, and what is placed apart so that it may. An `Attachment`, and `PlacedApart`.

    Parameters
    ----------
    pool
        The pool.
    tags
        Tags whose blocks lie in chunks of their own.
    """

    held: Final = ()  # nothing that it could give before its time

    def __init__(self, pool: SlowPath, tags: Iterable[str]) -> None:
        self._pool = pool
        self._tags = tuple(tags)
        self.host = HostMemory(pool.driver)
        self.statistics = SleepStatistics()
        heap: object = pool.heap
        self._sections = {HEAP: _Section(HEAP, pool, None)} if isinstance(heap, ElasticHeap) else {}
        self._stream: int | None = None
        self._closed = False
        for tag in self._tags:
            self._kind(tag)
        pool.attached.append(self)
        pool.endings.append(self._end)
        self._look_again()

    def _kind(self, name: str) -> Kind:
        section = self._sections.get(name)
        if section is None:
            section = self._sections[name] = _Section(name, self._pool, Kind(name, self._pool))
        assert section.kind is not None
        return section.kind

    def _look_again(self) -> None:
        asleep = any(section.asleep for section in self._sections.values())
        self._pool.apart = self if self._tags or asleep else None
        self._pool.look_again()

    # ------------------------------------------------------------------ sleep and wake

    def sleep(
        self,
        tags: str | Iterable[str] | None = None,
        *,
        keep: Keep = "host",
        directory: str | os.PathLike[str] | None = None,
        wait: bool = True,
    ) -> SleepOutcome:
        """Give physical memory back and keep the addresses; see `SmartPool.sleep`."""
        if keep not in _KEEPS:
            raise InvalidRequestError(f"keep: expected one of {', '.join(map(repr, _KEEPS))}, got {keep!r}")
        if (keep == "disk") != (directory is not None):
            raise InvalidRequestError('directory: expected a folder with keep="disk", and None else')
        begin, pool = perf_counter(), self._pool
        with pool.writing():
            sections = self._chosen(tags)
            self._require_quiet()
            if not (wait or pool.clock.idle(pool.clock.mark_all(pool.bins_of))):
                raise AsleepError(
                    "expected the device to be idle with wait=False, it is at work; wait for it"
                )
            pool.driver.synchronize()
            before = {section.name: section.held_bytes for section in sections}
            fresh = [section for section in sections if not section.asleep]
            try:
                for section in fresh:
                    section.make_idle()
                    ranges = section.ranges()
                    section.kept_bytes = 0 if keep == "nothing" else sum(size for _, size in ranges)
                    section.contents = self._keep(ranges, keep, directory)
                for section in fresh:
                    section.fall_asleep()
            except BaseException:
                for section in fresh:
                    if not section.asleep:
                        section.settle()
                raise
            finally:
                self._look_again()
            for section in sections:  # those that a failure left half-way, too
                section.lay_down()
            self.statistics.sleeps += 1
            return self._outcome(begin, before, sections)

    def wake(self, tags: str | Iterable[str] | None = None) -> SleepOutcome:
        """Map memory at the same addresses, and bring the contents back; see `SmartPool.wake`."""
        begin, pool = perf_counter(), self._pool
        with pool.writing():
            sections = [section for section in self._chosen(tags) if section.asleep]
            self._require_quiet()
            before = {section.name: section.held_bytes for section in sections}
            missing = sum(section.missing_bytes for section in sections)
            try:
                if missing:
                    pool.memory.check_room("create_chunk", missing, of_device=True)
                for section in sections:
                    section.get_up()
                for section in sections:
                    if section.contents is not None:
                        section.contents.restore()
            except (DriverError, AsleepError) as error:
                for section in sections:
                    with suppress(DriverError):  # another `sleep` goes on
                        section.lay_down()
                if isinstance(error, DriverOutOfMemoryError):
                    raise self._no_room(missing, error) from error
                raise
            outcome = self._outcome(begin, before, sections)
            try:
                for section in sections:
                    section.awake()
            finally:
                self._look_again()
            self.statistics.wakes += 1
            return outcome

    def _keep(
        self, ranges: Sequence[Range], keep: Keep, directory: str | os.PathLike[str] | None
    ) -> Contents | None:
        if keep == "nothing":
            return None
        driver = self._pool.driver
        if self._stream is None:
            self._stream = driver.create_stream()
        if directory is not None:
            return keep_in_file(driver, self.host, ranges, self._stream, directory)
        try:
            return keep_on_host(driver, self.host, ranges, self._stream)
        except DriverOutOfMemoryError as error:
            raise AsleepError(
                f"expected pinned memory for {format_size(sum(size for _, size in ranges))}: {error}; "
                'all stays awake: keep it on "disk", or let less sleep'
            ) from error

    def _chosen(self, tags: str | Iterable[str] | None) -> list[_Section]:
        pool = self._pool
        if pool.closed:
            raise pool.closed_error()
        if not self._sections or not pool.pooling:
            raise UnsupportedError(f"sleep: {pool.driver.name} has no virtual memory, or pooling is off")
        if tags is None:
            return list(self._sections.values())
        names = [tags] if isinstance(tags, str) else list(dict.fromkeys(tags))
        for name in names:
            if name == HEAP or name not in self._sections:
                known = ", ".join(repr(one) for one in self._sections if one) or "none"
                raise InvalidRequestError(
                    f"tags: expected some of those that lie apart ({known}), got {name!r}: name it in "
                    "SmartPoolConfig(sleep_tags=...) when the pool is made"
                )
        return [self._sections[name] for name in names]

    def _require_quiet(self) -> None:
        if self._pool.capture is not None:
            raise CaptureError("expected no capture under way on this device, one is; end it first")
        if self._pool.planned is not None:
            raise StepError("expected no planned step under way, one is; sleep and wake between steps")

    def _no_room(self, missing: int, error: DriverOutOfMemoryError) -> OutOfMemoryError:
        info, memory = self._pool.driver.memory_info(), self._pool.memory
        others = max(0, info.total - info.free - memory.reserved_bytes)
        return OutOfMemoryError(
            f"expected {format_size(missing)} to wake what sleeps on {self._pool.driver.name}, "
            f"{format_size(min(info.free, memory.room_bytes))} are free ({error.code}): this pool holds "
            f"{format_size(memory.reserved_bytes)} of its {format_size(memory.cap_bytes)}, others hold "
            f"{format_size(others)} of the device; all stays asleep: let something end, and wake again"
        )

    def _outcome(self, begin: float, before: dict[str, int], sections: Sequence[_Section]) -> SleepOutcome:
        by_tag = {one.name: abs(before[one.name] - one.held_bytes) for one in sections}
        kept = sum(section.kept_bytes for section in sections)
        return SleepOutcome(sum(by_tag.values()), kept, perf_counter() - begin, by_tag)

    def asleep(self) -> dict[str, int]:
        """Return the bytes that sleep by tag; ``""`` is what has no tag of its own."""
        return {name: one.missing_bytes for name, one in self._sections.items() if one.asleep}

    # ------------------------------------------------------------------ as `PlacedApart`

    @property
    def heap_asleep(self) -> bool:
        """Whether the memory of the heap is given back."""
        return HEAP in self._sections and self._sections[HEAP].asleep

    def serve(self, nbytes: int, stream: int, alignment: int) -> int | None:
        """Place a request whose tag lies apart; None for another."""
        tag = current_label().tag
        if tag in self._tags and tag is not None:
            return self._kind(tag).request(nbytes, stream, alignment)
        if self.heap_asleep:
            raise AsleepError(f"expected a pool that is awake on {self._pool.driver.name}: call wake() first")
        return None

    def request(self, name: str, nbytes: int, stream: object, alignment: int) -> int:
        """Return the address of a block among others of its kind, whatever the tag. Holds no lock."""
        pool = self._pool
        handle = pool.home if stream is None else pool.driver.stream(stream)
        with pool.writing():
            if pool.closed:
                raise pool.closed_error()
            if handle != pool.home and not pool.several_streams:
                pool.begin_several_streams()
            return self._kind(name).request(nbytes, handle, alignment)

    def require_awake(self, pointer: int) -> None:
        """Raise `AsleepError` where the memory of a live block sleeps."""
        for section in self._sections.values():
            inside = section.asleep and any(book.table.at(pointer) is not None for book in section.books)
            if inside:
                what = f"tag {section.name!r}" if section.name else "the pool"
                raise AsleepError(
                    f"expected memory that is awake, {pointer:#x} sleeps: wake {what} before its use"
                )

    # ------------------------------------------------------------------ as `Attachment`

    def give_way(self, pool: SlowPath) -> None:
        """Give back the idle chunks of every kind, once the device is done with them."""
        kinds = [one.kind for one in self._sections.values() if one.kind is not None and one.kind.has_free()]
        if kinds and pool.capture is None:
            pool.driver.synchronize()
            for kind in kinds:
                kind.release_idle()

    def before_flush(self, pool: SlowPath) -> None:
        """Nothing: what is freed apart is found by the next request."""

    def before_capture(self) -> None:
        """Raise `CaptureError` while anything sleeps."""
        if any(section.asleep for section in self._sections.values()):
            raise CaptureError("expected all memory to be awake before a capture, some sleeps; wake it first")

    def regions(self) -> list[tuple[int, int]]:
        """Return none: no block of the heap is held."""
        return []

    def keeps_open(self) -> bool:
        """Return False: what sleeps goes with the pool."""
        return False

    def recover(self, pool: SlowPath) -> None:
        """Make it whole after a call that was broken off."""
        pool.driver.synchronize()
        for section in self._sections.values():
            section.settle()
            if section.kind is not None:
                section.kind.recover(pool.heap)
        pool.memory.recount()
        self._look_again()

    def check(self, pool: SlowPath) -> None:  # noqa: ARG002
        """Prove the invariants."""
        for section in self._sections.values():
            if section.kind is not None:
                section.kind.check_sound()

    def close(self) -> None:
        """Nothing: blocks that sleep may still be freed."""

    def _end(self) -> None:
        for section in self._sections.values():
            if section.contents is not None:
                section.contents.discard()
                section.contents = None
            if section.kind is not None:
                section.kind.end()
        self.host.close()
        if self._stream is not None:
            self._pool.driver.destroy_stream(self._stream)
            self._stream = None
