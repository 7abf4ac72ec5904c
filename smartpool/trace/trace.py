"""A recorded sequence of allocations and frees: the value that everything in `smartpool.trace` shares.

A trace is columns of equal length, one row an event in order. It is checked when it is made, so that
whoever holds one may rely on it: sizes are positive, every free names a live allocation and carries its
size, no live id is given out again, time does not run backwards, and the live bytes fit 62 bits. The
columns are copies that nobody can write to.

The check sorts the rows by id, stably: within one id the operations must then alternate, beginning with
an allocation. That is O(n log n) in NumPy (0.1 s for 400,000 events) instead of a Python loop over a
dictionary of live ids, and the same order pairs every free with its allocation for `lifetimes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smartpool.errors import TraceError, TraceFormatError, TraceInconsistentError
from smartpool.npz import read_npz, write_npz
from smartpool.values import encodable

__all__ = ["ALLOCATE", "FREE", "MAX_ADDRESS", "MAX_STREAMS", "Lifetimes", "Trace"]

ALLOCATE: Final = 0
FREE: Final = 1
MAX_STREAMS: Final = 256  # the stream column is one byte

_COLUMNS: Final[Mapping[str, type[np.integer[Any]]]] = {
    "op": np.uint8,
    "id": np.int32,
    "size": np.int64,
    "stream": np.uint8,
    "t_us": np.int64,
}
_OPTIONAL: Final[Mapping[str, type[np.integer[Any]]]] = {"address": np.int64, "site": np.int32}
MAX_ADDRESS: Final = 1 << 62  # so that no end of a block, rounded up, leaves 64 bits
_MAX_LIVE_BYTES: Final = 1 << 62  # so that sums of sizes never wrap around in 64 bits


class Lifetimes(NamedTuple):
    """The intervals of a trace, one row an allocation in the order in which they began.

    `start` and `end` are event indices: the allocation is live in [start, end).
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    size: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Allocations and frees in order.

    Parameters
    ----------
    name
        What the trace is called in tables and reports. What UTF-8 cannot encode in it, and in `meta`, is
        kept as its escape (`smartpool.values.encodable`).
    op
        0 for an allocation (`ALLOCATE`), 1 for a free (`FREE`).
    id
        Number of the allocation; a free names the allocation that it ends. An id may be given out
        again once it was freed.
    size
        Bytes as requested, above 0. On a free: the size of the allocation that it ends.
    stream
        Number of the stream on which the event happened; 0 is the first one seen.
    t_us
        Microseconds since the first event; never decreases.
    meta
        Anything else that JSON can hold: what recorded it, the recorder's own peaks. Its ``"name"``
        is always the trace's name. Its ``"sites"``, where `site` is given, is the list that `site`
        counts in: one string a place in the program, innermost call first, one call a line.
    address
        Where the recording allocator put the allocation, or None where that was not recorded. The
        free of an allocation has the same.
    site
        Which of ``meta["sites"]`` made the request, -1 where that is not known; or None where it was
        not recorded. The free of an allocation has the same.

    Raises
    ------
    TraceInconsistentError
        When the columns contradict themselves; the message names the row, counted from 0.
    TraceFormatError
        When a column is not one-dimensional, holds values that are out of its range, or has another
        length than the others, or when `meta` cannot be written as JSON.

    Examples
    --------
    >>> trace = Trace("two", op=[0, 0, 1], id=[0, 1, 0], size=[512, 9, 512], stream=[0, 0, 0], t_us=[0, 5, 9])
    >>> len(trace), trace.allocations, trace.streams, trace.peak_live_bytes
    (3, 2, 1, 521)
    >>> Trace("bad", op=[0, 1, 1], id=[7, 7, 7], size=[1, 1, 1], stream=[0, 0, 0], t_us=[0, 0, 0])
    Traceback (most recent call last):
    smartpool.errors.TraceInconsistentError: trace 'bad', row 2: frees allocation 7 for the second time ...
    """

    name: str
    op: NDArray[np.uint8]
    id: NDArray[np.int32]
    size: NDArray[np.int64]
    stream: NDArray[np.uint8]
    t_us: NDArray[np.int64]
    meta: Mapping[str, object] = field(default_factory=dict)
    address: NDArray[np.int64] | None = None
    site: NDArray[np.int32] | None = None
    _partner: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        where = f"trace {self.name!r}"
        if not isinstance(self.name, str):
            raise TraceFormatError(f"expected the name of a trace to be a string, got {self.name!r}")
        object.__setattr__(self, "name", encodable(self.name))
        for column, dtype in {**_COLUMNS, **_OPTIONAL}.items():
            given = getattr(self, column)
            if given is not None or column in _COLUMNS:
                object.__setattr__(self, column, _frozen_column(where, column, given, dtype))
        lengths = {column: len(values) for column, values in self.columns().items()}
        if len(set(lengths.values())) > 1:
            raise TraceFormatError(f"{where}: expected columns of one length, got {lengths}")
        object.__setattr__(self, "meta", _plain_meta(where, {**self.meta, "name": self.name}))
        _check_rows(self, where)
        object.__setattr__(self, "_partner", _paired(self, where))

    # ------------------------------------------------------------------ making, reading, writing

    @classmethod
    def from_columns(
        cls,
        name: str,
        *,
        op: ArrayLike,
        id: ArrayLike,  # noqa: A002  the column's name in the format
        size: ArrayLike,
        stream: ArrayLike | None = None,
        t_us: ArrayLike | None = None,
        meta: Mapping[str, object] | None = None,
        address: ArrayLike | None = None,
        site: ArrayLike | None = None,
    ) -> Trace:
        """Return the trace with these columns; one stream and one microsecond an event where not given.

        Examples
        --------
        >>> Trace.from_columns("tiny", op=[0, 1], id=[0, 0], size=[512, 512]).t_us.tolist()
        [0, 1]
        """
        events = np.size(op)
        return cls(
            name,
            op=op,  # type: ignore[arg-type]  # __post_init__ turns what is array-like into columns
            id=id,  # type: ignore[arg-type]
            size=size,  # type: ignore[arg-type]
            stream=np.zeros(events, np.uint8) if stream is None else stream,  # type: ignore[arg-type]
            t_us=np.arange(events, dtype=np.int64) if t_us is None else t_us,  # type: ignore[arg-type]
            meta=meta or {},
            address=address,  # type: ignore[arg-type]
            site=site,  # type: ignore[arg-type]
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trace:
        """Return the trace in an ``.npz`` file, whoever wrote it: nothing in it is trusted or run.

        Raises
        ------
        TraceFormatError
            When the file is truncated, damaged, too large, or no trace.
        TraceInconsistentError
            When it can be read and contradicts itself.
        OSError
            When the file cannot be opened.
        """
        columns, meta = read_npz(path, tuple(_COLUMNS), optional=tuple(_OPTIONAL))
        given = meta.get("name")
        try:
            return cls(given if isinstance(given, str) else Path(path).stem, **columns, meta=meta)
        except TraceError as error:
            raise type(error)(f"{path}: {error}") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Write the trace to exactly `path`; a file that is there is replaced whole or not at all."""
        write_npz(path, self.columns(), self.meta)

    # ------------------------------------------------------------------ what it says

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name, those that were not recorded left out."""
        every = {column: getattr(self, column) for column in (*_COLUMNS, *_OPTIONAL)}
        return {column: values for column, values in every.items() if values is not None}

    @property
    def sites(self) -> tuple[str, ...]:
        """The places in the program that `site` counts in; empty where they were not recorded."""
        return tuple(cast("list[str]", self.meta.get("sites", ()))) if self.site is not None else ()

    def __len__(self) -> int:
        return len(self.op)

    @property
    def events(self) -> int:
        """Number of rows."""
        return len(self.op)

    @property
    def allocations(self) -> int:
        """Number of allocations."""
        return self.events - int(np.count_nonzero(self.op))

    @property
    def streams(self) -> int:
        """One more than the highest stream number: how many streams a replay needs."""
        return int(self.stream.max()) + 1 if self.events else 0

    @property
    def peak_live_bytes(self) -> int:
        """The largest sum of live bytes, as requested, after any event. O(n)."""
        return int(self.live_bytes().max(initial=0))

    def live_bytes(self, *, without: ArrayLike = ()) -> NDArray[np.int64]:
        """Return the live bytes, as requested, after each event, but for allocations of some numbers. O(n).

        Examples
        --------
        >>> trace = Trace.from_columns("tiny", op=[0, 0, 1], id=[0, 1, 0], size=[8, 9, 8])
        >>> trace.live_bytes().tolist(), trace.live_bytes(without=[1]).tolist()
        ([8, 17, 9], [8, 8, 0])
        """
        signed = _signed_sizes(self)
        if np.size(without):
            signed = np.where(np.isin(self.allocation_numbers(), without), 0, signed)
        return np.cumsum(signed)

    def lifetimes(self) -> Lifetimes:
        """Return the lifetime of every allocation in event-index time. O(n).

        What is still live at the end of the trace ends with it, at ``len(trace)``.

        Examples
        --------
        >>> trace = Trace.from_columns("tiny", op=[0, 0, 1], id=[0, 1, 0], size=[8, 9, 8])
        >>> [column.tolist() for column in trace.lifetimes()]
        [[0, 1], [2, 3], [8, 9]]
        """
        start = np.flatnonzero(self.op == ALLOCATE).astype(np.int64)
        return Lifetimes(start, self._partner[start], self.size[start])

    def allocation_numbers(self) -> NDArray[np.int64]:
        """Return for each event the number of its allocation: 0, 1, 2 ... in order, none used twice. O(n).

        Ids may have gaps and may be used again; these can index a list.

        Examples
        --------
        >>> trace = Trace.from_columns("tiny", op=[0, 1, 0, 0], id=[9, 9, 9, 4], size=[8, 8, 7, 7])
        >>> trace.allocation_numbers().tolist()
        [0, 0, 1, 2]
        """
        allocates = self.op == ALLOCATE
        numbers = np.cumsum(allocates, dtype=np.int64) - 1
        frees = np.flatnonzero(~allocates)
        numbers[frees] = numbers[self._partner[frees]]
        return numbers

    def prefix(self, events: int) -> Trace:
        """Return the trace of the first `events` events."""
        kept = {column: values[: max(0, events)] for column, values in self.columns().items()}
        return Trace(self.name, **kept, meta=self.meta)

    def check(self) -> None:
        """Raise `TraceInconsistentError` where the trace contradicts itself: it never does once made."""
        _check_rows(self, f"trace {self.name!r}")
        _paired(self, f"trace {self.name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        mine, theirs = self.columns(), other.columns()
        return (
            self.meta == other.meta
            and mine.keys() == theirs.keys()
            and all(np.array_equal(values, theirs[column]) for column, values in mine.items())
        )

    __hash__ = None  # type: ignore[assignment]  # equal by millions of rows: no cheap hash exists

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, events={self.events}, allocations={self.allocations})"


# ---------------------------------------------------------------------- checks


def _frozen_column(where: str, column: str, values: ArrayLike, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """Return a read-only copy of `values` as `dtype`, or raise when a value would change."""
    try:
        given = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise TraceFormatError(f"{where}: column {column!r} cannot be read: {error}") from None
    if given.size == 0:
        given = given.astype(dtype)  # an empty list comes as float64
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise TraceFormatError(
            f"{where}: expected column {column!r} to be one-dimensional and of integers, "
            f"got {given.dtype} of shape {given.shape}"
        )
    limits = np.iinfo(dtype)
    if given.size and not (limits.min <= int(given.min()) and int(given.max()) <= limits.max):
        row = int(np.flatnonzero((given < limits.min) | (given > limits.max))[0])
        raise TraceFormatError(
            f"{where}, row {row}: expected {column!r} in [{limits.min}, {limits.max}], got {given[row]}"
        )
    made = np.array(given, dtype=dtype, order="C")
    made.flags.writeable = False
    return made


def _plain_meta(where: str, meta: Mapping[str, object]) -> dict[str, object]:
    """Return `meta` as JSON gives it back, so that what is saved is what was held."""
    try:
        text = json.dumps(meta, allow_nan=False)
        plain: dict[str, object] = json.loads(text)
        return _encodable(plain) if "\\ud" in text else plain
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceFormatError(f"{where}: meta cannot be written as JSON: {error}") from None


def _encodable(plain: Any) -> Any:
    """Return what JSON gave with every string in it `encodable`."""
    if isinstance(plain, dict):
        return {encodable(key): _encodable(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_encodable(item) for item in plain]
    return encodable(plain) if isinstance(plain, str) else plain


def _check_rows(trace: Trace, where: str) -> None:
    """Check what can be seen row by row."""
    step = np.diff(trace.t_us, prepend=np.int64(0)) if trace.events else trace.t_us
    rules: list[tuple[NDArray[np.bool_], str, NDArray[Any]]] = [
        (trace.op > FREE, "op 0 (allocate) or 1 (free)", trace.op),
        (trace.id < 0, "an id of at least 0", trace.id),
        (trace.size <= 0, "a size above 0", trace.size),
        (trace.t_us < 0, "t_us of at least 0", trace.t_us),
        (step < 0, "t_us not to decrease", trace.t_us),
        *_optional_checks(trace, where),
    ]
    for bad, expected, column in rules:
        if bad.any():
            row = int(np.argmax(bad))
            raise TraceInconsistentError(f"{where}, row {row}: expected {expected}, got {column[row]}")
    # In floating point first: whether the exact sums below can wrap around.
    rough = np.cumsum(_signed_sizes(trace), dtype=np.float64)
    if rough.max(initial=0.0) >= _MAX_LIVE_BYTES:
        row = int(np.argmax(rough >= _MAX_LIVE_BYTES))
        raise TraceInconsistentError(
            f"{where}, row {row}: expected less than 2**62 live bytes, got {rough[row]:.3g}"
        )


def _optional_checks(trace: Trace, where: str) -> Iterator[tuple[NDArray[np.bool_], str, NDArray[Any]]]:
    """Yield where a column that may be missing is wrong, what is expected there, and the column."""
    if trace.address is not None:
        yield trace.address < 0, "an address of at least 0", trace.address
        beyond = trace.address > MAX_ADDRESS - trace.size
        yield beyond, "an address whose block ends by 2**62", trace.address
    if trace.site is not None:
        sites = trace.meta.get("sites")
        if not isinstance(sites, list) or not all(isinstance(site, str) for site in sites):
            raise TraceFormatError(f"{where}: expected meta['sites'] to be a list of strings beside 'site'")
        wrong = (trace.site < -1) | (trace.site >= len(sites))
        yield wrong, f"a site from -1 to {len(sites) - 1}", trace.site


def _paired(trace: Trace, where: str) -> NDArray[np.int64]:
    """Return for each row that of its counterpart; ``len(trace)`` for allocations that are never freed."""
    events = trace.events
    order = np.argsort(trace.id, kind="stable")
    ids, ops = trace.id[order], trace.op[order]
    same = np.zeros(events, dtype=bool)  # whether the row before, in this order, has the same id
    same[1:] = ids[1:] == ids[:-1]
    before = np.roll(ops, 1)
    frees = ops == FREE
    unknown, double, reused = frees & ~same, frees & same & (before == FREE), ~frees & same & (before != FREE)
    bad = unknown | double | reused
    if bad.any():
        at = int(np.flatnonzero(bad)[np.argmin(order[bad])])  # the first in the order of the trace
        what = (
            "frees allocation {}, which was never made; the beginning of the trace may be missing"
            if unknown[at]
            else "frees allocation {} for the second time"
            if double[at]
            else "allocates with id {}, which is still live"
        )
        raise TraceInconsistentError(
            f"{where}, row {order[at]}: {what.format(ids[at])} "
            "(expected every free to end one live allocation)"
        )
    partner = np.full(events, events, dtype=np.int64)
    ends = np.flatnonzero(frees)
    partner[order[ends]] = order[ends - 1]
    partner[order[ends - 1]] = order[ends]
    for name in ("size", *_OPTIONAL):
        column = getattr(trace, name)
        differs = frees & (column[order] != np.roll(column[order], 1)) if column is not None else frees[:0]
        if differs.any():
            row = int(order[differs].min())
            raise TraceInconsistentError(
                f"{where}, row {row}: expected the free of allocation {trace.id[row]} to carry its {name} "
                f"{column[partner[row]]}, got {column[row]}"
            )
    partner.flags.writeable = False
    return partner


def _signed_sizes(trace: Trace) -> NDArray[np.int64]:
    return np.where(trace.op == ALLOCATE, trace.size, -trace.size)
