"""What the planner returns: an offset for every interval, and how good the whole is.

File format
-----------
A plan is saved as a NumPy ``.npz``: ``offsets`` (int64, one an interval, in the order of the input) and
``meta``, a JSON string with ``schema`` (1), ``height``, ``load``, ``method``, ``seconds`` and
``proved_optimal``. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from os import PathLike
from typing import Final

import numpy as np

from smartpool.errors import PlanningError
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

    @property
    def gap(self) -> float:
        """By how much the height exceeds the load, as a share of the load; 0 for an empty plan."""
        return (self.height - self.load) / self.load if self.load else 0.0

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan to `path` as an ``.npz``; the suffix is the caller's choice."""
        meta = {
            "schema": SCHEMA,
            "height": self.height,
            "load": self.load,
            "method": self.method,
            "seconds": self.seconds,
            "proved_optimal": self.proved_optimal,
        }
        with open(path, "wb") as file:  # noqa: PTH123  savez adds a suffix to paths, not to files
            np.savez_compressed(file, offsets=self.offsets, meta=np.array(json.dumps(meta)))

    @classmethod
    def load_file(cls, path: str | PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises
        ------
        PlanningError
            When the file is no plan, or of a newer schema.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                offsets, meta = archive["offsets"], json.loads(str(archive["meta"]))
                if meta["schema"] != SCHEMA:
                    raise PlanningError(f"{path}: expected a plan of schema {SCHEMA}, got {meta['schema']!r}")
                return cls(
                    offsets=offsets.astype(np.int64),
                    height=int(meta["height"]),
                    load=int(meta["load"]),
                    method=str(meta["method"]),
                    seconds=float(meta["seconds"]),
                    proved_optimal=bool(meta["proved_optimal"]),
                )
        except (KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise PlanningError(f"{path}: expected a plan that Plan.save wrote, got {error}") from None
        except ValueError as error:
            if isinstance(error, PlanningError):
                raise
            raise PlanningError(f"{path}: expected a plan that Plan.save wrote, got {error}") from None
