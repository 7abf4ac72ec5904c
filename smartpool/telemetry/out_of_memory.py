"""Why memory ran out: what was asked, what is in the way, who holds it, and what would help."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from smartpool._version import __version__
from smartpool.errors import REQUEST_TOO_LARGE
from smartpool.heap.arena import ALIGNMENT
from smartpool.lazy import renamed_names
from smartpool.pool.bins import Bin
from smartpool.telemetry.labels import NOBODY, Label
from smartpool.telemetry.memory_map import MemoryMap
from smartpool.telemetry.statistics import MemorySnapshot
from smartpool.telemetry.tracking import UNTAGGED
from smartpool.units import format_size

__all__ = [
    "DUMP_FORMAT",
    "DUMP_VARIABLE",
    "DUMP_VERSION",
    "Advice",
    "Holder",
    "OutOfMemoryReport",
    "holders",
    "make_report",
    "write_dump",
]

__getattr__ = renamed_names(__name__, {"OutOfMemoryStory": "OutOfMemoryReport"})

DUMP_FORMAT: Final = "smartpool-out-of-memory"
DUMP_VERSION: Final = 1
DUMP_VARIABLE: Final = "SMARTPOOL_OUT_OF_MEMORY_DUMP"

_MOST_HOLDERS: Final = 8  # of each kind
_READABLE: Final = 1 << 90  # from here on the digits of a size tell nobody anything


@dataclass(frozen=True, slots=True)
class Holder:
    """Live blocks that belong together.

    Attributes
    ----------
    kind
        ``"tag"``, ``"stack"`` or ``"size"``: what they have in common.
    name
        The tag; the stack, a line a frame; or the size of each, as text.
    blocks, nbytes
        How many, and their bytes as requested.
    """

    kind: str
    name: str
    blocks: int
    nbytes: int

    def __str__(self) -> str:
        name = self.name.split("\n", 1)[0]
        if self.kind == "size":
            return f"{self.blocks} x {name}"
        return f"{format_size(self.nbytes)} in {self.blocks} blocks by {self.kind} {name!r}"


@dataclass(frozen=True, slots=True)
class Advice:
    """What would help: a sentence, and the bytes that it would bring, None where that is not known."""

    text: str
    nbytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemoryReport:
    """One request that failed. `docs/out-of-memory.md` describes every field.

    Attributes
    ----------
    cached_by_stream
        Freed blocks that wait in bins, by the stream that used them last.
    code
        The driver's own name of the failure, ``OUT_OF_MEMORY`` where the pool itself knew that the device is
        full; ``CAP_REACHED`` is the pool's limit, ``REQUEST_TOO_LARGE`` a request that could never succeed.
    limited
        Whether `cap_bytes` is a limit that the pool was given, and not what the device has.
    collected_bytes
        What collecting garbage freed before the request was tried a last time; None where it was not safe.
    """

    device: str
    stream: int
    requested_bytes: int
    live_bytes: int
    live_blocks: int
    reserved_bytes: int
    cap_bytes: int
    cached_bytes: int
    gap_bytes: int
    largest_free_bytes: int
    cached_by_stream: Mapping[int, int]
    device_free_bytes: int
    device_total_bytes: int
    fragmentation: Mapping[str, float]
    holders: tuple[Holder, ...]
    advice: tuple[Advice, ...]
    code: str
    alignment: int = ALIGNMENT
    limited: bool = True
    collected_bytes: int | None = None

    def message(self) -> str:
        """Return the report in two sentences, for the error. Programs look for the words of the first."""
        device, asked = self.device, format_size(self.requested_bytes)
        if self.requested_bytes < _READABLE:
            asked += f" ({self.requested_bytes} bytes)"
        if self.alignment > ALIGNMENT:
            asked += f" aligned to {format_size(self.alignment)}"
        kind = "CUDA" if device.startswith("cuda:") else device
        head = f"{kind} out of memory. Tried to allocate {asked} on {device}"
        if self.code == REQUEST_TOO_LARGE:
            return f"{head}, which is more than can ever be had: {'; '.join(one.text for one in self.advice)}"
        parts = ", ".join(f"{name} {value:.1%}" for name, value in self.fragmentation.items())
        held = [one for one in self.holders if one.kind == self.holders[0].kind][:3] if self.holders else []
        best = self.advice[0].text if self.advice else "free what is not needed"
        garbage = self.collected_bytes
        tried = "" if garbage is None else f"collecting garbage freed {format_size(garbage)} before; "
        return (
            f"{head}: {format_size(self.live_bytes)} live in {self.live_blocks} blocks "
            f"(most: {', '.join(map(str, held)) or 'none'}), {format_size(self.reserved_bytes)} reserved of "
            f"{format_size(self.cap_bytes)}, largest free range {format_size(self.largest_free_bytes)}, "
            f"{format_size(self.device_free_bytes)} free on the device; fragmentation: {parts}; "
            f"{tried}{best} ({self.code})"
        )

    def text(self) -> str:
        """Return the whole report in lines."""
        size = format_size
        idle = f"{size(self.gap_bytes)} in gaps, the largest {size(self.largest_free_bytes)}; "
        lines = [
            f"asked      {size(self.requested_bytes)} on {self.device}, stream {self.stream}",
            f"live       {size(self.live_bytes)} in {self.live_blocks} blocks",
            f"reserved   {size(self.reserved_bytes)} of {size(self.cap_bytes)}",
            f"idle       {idle}{size(self.cached_bytes)} in bins",
            f"device     {size(self.device_free_bytes)} free of {size(self.device_total_bytes)}",
            "fragments  " + ", ".join(f"{name} {value:.1%}" for name, value in self.fragmentation.items()),
        ]
        if self.collected_bytes is not None:
            lines.append(f"garbage    {size(self.collected_bytes)}, collected before")
        lines += [f"{'holders' if not i else '':10} {holder}" for i, holder in enumerate(self.holders)]
        lines += [f"{'advice' if not i else '':10} {advice.text}" for i, advice in enumerate(self.advice)]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything in plain dictionaries, ready for JSON."""
        plain = asdict(self)
        plain["cached_by_stream"] = {str(stream): size for stream, size in self.cached_by_stream.items()}
        return plain


_TAKEN_OVER: Final = (
    "device", "live_bytes", "live_blocks", "reserved_bytes", "cap_bytes", "cached_bytes", "gap_bytes",
    "largest_free_bytes", "device_free_bytes", "device_total_bytes",
)  # fmt: skip
"""What a report has of the snapshot as it is."""


def make_report(
    requested: Bin,
    code: str,
    now: MemorySnapshot,
    held: tuple[Holder, ...],
    *,
    tightest: bool,
    tracked: bool,
    **facts: Any,
) -> OutOfMemoryReport:
    """Return the report of a request that failed with the driver's `code`; `facts` are fields of it."""
    advice = _advice(requested, code, now, held, limited=facts["limited"], tightest=tightest, tracked=tracked)
    cached = {stream: group.cached_bytes for stream, group in now.streams.items() if group.cached_bytes}
    return OutOfMemoryReport(
        stream=requested.stream,
        requested_bytes=requested.nbytes,
        cached_by_stream=cached,
        fragmentation=now.fragmentation.as_dict(),
        holders=held,
        advice=tuple(advice),
        code=code,
        **{name: getattr(now, name) for name in _TAKEN_OVER},
        **facts,
    )


def _advice(
    requested: Bin,
    code: str,
    now: MemorySnapshot,
    held: tuple[Holder, ...],
    *,
    limited: bool,
    tightest: bool,
    tracked: bool,
) -> Iterable[Advice]:
    whose = "the pool's limit (max_bytes)" if limited else f"what {now.device} has"
    if code == REQUEST_TOO_LARGE:  # whatever else is live or idle
        yield Advice(f"ask for at most {format_size(now.cap_bytes)} ({now.cap_bytes} bytes), {whose}")
        if limited:
            yield Advice(
                f"raise max_bytes: the device has {format_size(now.device_total_bytes)} in all",
                now.device_total_bytes - now.cap_bytes,
            )
        return
    missing = now.block_bytes + requested.size - now.cap_bytes
    others = now.device_total_bytes - now.device_free_bytes - now.reserved_bytes
    reached = code == "CAP_REACHED"
    if missing > 0:
        yield Advice(
            f"free what is not needed: what is live and the request exceed {whose} by {format_size(missing)}",
            missing,
        )
    if reached and now.device_free_bytes > 0:
        yield Advice(
            f"raise max_bytes: the pool's limit is {format_size(now.cap_bytes)} while the device has "
            f"{format_size(now.device_free_bytes)} free",
            now.device_free_bytes,
        )
    if not reached and others > requested.size // 4:
        yield Advice(
            f"{format_size(others)} of the device are held by others (other processes, a framework's own "
            "cache, the context): end them, or let them use this pool",
            others,
        )
    if missing <= 0 and now.gap_bytes >= requested.size and not tightest:
        yield Advice(
            f"{format_size(now.gap_bytes)} are free in the pool, in pieces of at most "
            f"{format_size(now.largest_free_bytes)} in chunks that are partly live: policy='tight' has "
            "smaller chunks and leaves fewer",
            now.gap_bytes,
        )
    waiting = max(now.streams.items(), key=lambda item: item[1].cached_bytes, default=None)
    if waiting is not None and waiting[1].cached_bytes >= requested.size:
        yield Advice(
            f"{format_size(waiting[1].cached_bytes)} were freed on stream {waiting[0]} meanwhile: try again",
            waiting[1].cached_bytes,
        )
    if held and held[0].kind != "size":
        yield Advice(f"the largest holder is {held[0]}", held[0].nbytes)
    if missing <= 0:
        yield Advice("free what is not needed, or ask for less")
    if not tracked:
        yield Advice("start_tracking(stack_depth=8) and tag() name the holders by place and by purpose")


def holders(live: Mapping[int, Bin], labels: Mapping[int, Label]) -> tuple[Holder, ...]:
    """Return the largest groups of live blocks: by tag and by stack where known, then by size."""
    groups: dict[str, dict[str, list[int]]] = {"tag": {}, "stack": {}, "size": {}}
    for pointer, bin_ in live.items():
        label = labels.get(pointer, NOBODY) if labels else NOBODY
        _enter(groups["size"], format_size(bin_.nbytes), bin_.nbytes)
        if labels:
            _enter(groups["tag"], label.tag or UNTAGGED, bin_.nbytes)
            if label.stack:
                _enter(groups["stack"], label.site, bin_.nbytes)
    if groups["tag"].keys() <= {UNTAGGED}:
        groups["tag"].clear()
    found: list[Holder] = []
    for kind, members in groups.items():
        sizes = Counter({name: figures[1] for name, figures in members.items()})
        largest = sizes.most_common(_MOST_HOLDERS)
        found += [Holder(kind, name, members[name][0], size) for name, size in largest]
    return tuple(found)


def _enter(group: dict[str, list[int]], name: str, nbytes: int) -> None:
    figures = group.setdefault(name, [0, 0])
    figures[0] += 1
    figures[1] += nbytes


def write_dump(
    folder: str, report: OutOfMemoryReport, now: MemorySnapshot, shown: MemoryMap, *, stack: str
) -> Path:
    """Write the report with statistics and memory map into `folder`; return the file. May raise `OSError`.

    Its name cannot be foreseen, and nothing that is there is written to: not a file that another process left
    (in containers each has the same number), nor what a link names that somebody planted.
    """
    time = datetime.now(UTC)
    document = {
        "format": DUMP_FORMAT,
        "version": DUMP_VERSION,
        "time": time.isoformat(timespec="milliseconds"),
        "smartpool": __version__,
        "process": {"pid": os.getpid(), "thread": threading.current_thread().name},
        "stack": stack,
        "story": report.as_dict(),
        "snapshot": now.as_dict(),
        "memory_map": shown.as_dict(),
    }
    text, target = json.dumps(document), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"smartpool-oom-{time:%Y%m%dT%H%M%SZ}-{os.getpid()}-{secrets.token_hex(4)}.json"
    unfinished = path.with_suffix(".part")
    file = unfinished.open("x", encoding="utf-8")
    try:
        with file:
            file.write(text)
        unfinished.replace(path)  # a reader finds all of it or nothing
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return path
