"""What the planner returns: an offset for every interval, and how good the whole is.

File format
-----------
A plan is saved as a NumPy ``.npz``: ``offsets`` (int64, one an interval, in the order of the input) and
``meta``, a JSON string with ``schema`` (1), ``height``, ``load``, ``method``, ``seconds``,
``proved_optimal`` and ``capacity`` (null where none was named). Nothing in it is pickled, and a file may be
anybody's: see `smartpool.npz`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Final

import numpy as np

from smartpool.errors import PlanningError, TraceFormatError
from smartpool.npz import read_npz, write_npz
from smartpool.planner.intervals import LARGEST_TOTAL
from smartpool.planner.sweeps import Int64s

__all__ = ["Plan"]

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """Offsets for intervals.

    Parameters
    ----------
    offsets
        Bytes from the base, one an interval, in the order of the input.
    height
        End of the highest interval: the bytes that the plan needs.
    load
        The largest sum of live sizes: no plan can be lower.
    method
        The solver that found it.
    seconds
        What finding it took.
    proved_optimal
        No lower plan exists: the height is the load, or lower ones were excluded.
    capacity
        The bytes that were at hand; None where none were named.

    Examples
    --------
    >>> plan = Plan(offsets=np.array([0, 10, 0]), height=30, load=30, method="first fit", seconds=0.0,
    ...             proved_optimal=True)
    >>> plan.gap
    0.0
    """

    offsets: Int64s
    height: int
    load: int
    method: str
    seconds: float
    proved_optimal: bool
    capacity: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the plan fits the capacity; None where none was named."""
        return None if self.capacity is None else self.height <= self.capacity

    @property
    def gap(self) -> float:
        """By how much the height exceeds the load, as a share of the load; 0 for an empty plan."""
        return (self.height - self.load) / self.load if self.load else 0.0

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan to exactly `path` as an ``.npz``; a file there is replaced whole or not at all."""
        meta = {"schema": SCHEMA} | {name: getattr(self, name) for name in _FIELDS}
        write_npz(path, {"offsets": self.offsets}, meta)

    @classmethod
    def load_file(cls, path: str | PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises
        ------
        PlanningError
            When the file is no plan, or of a newer schema.
        """
        try:
            columns, meta = read_npz(path, ("offsets",))
        except TraceFormatError as error:
            raise PlanningError(f"{error}; expected a plan that Plan.save wrote") from None
        if meta.get("schema") != SCHEMA:
            raise PlanningError(
                f"{path}: expected a plan that Plan.save wrote, of schema {SCHEMA}, "
                f"got {meta.get('schema')!r:.60}; make it again with this version"
            )
        offsets = columns["offsets"].astype(np.int64)
        for name, good in _FIELDS.items():
            if not good(meta.get(name)):
                raise PlanningError(
                    f"{path}: expected a plan that Plan.save wrote, got {name} = {meta.get(name)!r:.60}"
                )
        if (offsets < 0).any():
            raise PlanningError(f"{path}: expected offsets of at least 0, got {offsets.min()}")
        return cls(offsets=offsets, **{name: meta.get(name) for name in _FIELDS})  # type: ignore[arg-type]


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST_TOTAL


_FIELDS: Final[Mapping[str, Callable[[object], bool]]] = {
    "height": _is_size,
    "load": _is_size,
    "method": lambda value: isinstance(value, str),
    "seconds": lambda value: isinstance(value, int | float) and 0 <= value < math.inf,
    "proved_optimal": lambda value: isinstance(value, bool),
    "capacity": lambda value: value is None or (type(value) is int and value >= 0),
}
