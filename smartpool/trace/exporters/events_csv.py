"""Traces as CSV: one row an event, for spreadsheets, data frames and `smartpool.trace.from_csv`.

The columns are those of the ``.npz`` (`docs/traces.md`), and at the end of the row, where it was
recorded, the address in hexadecimal and the stack, its calls separated by `` < ``. What a cell would not
keep, or a spreadsheet would run, is written as a JSON string (`smartpool.csv_rows`). The name and the rest of
the metadata are not in the file.
"""

from __future__ import annotations

import csv
from os import PathLike
from pathlib import Path

from smartpool.trace.importers.events_csv import site_cell
from smartpool.trace.trace import Trace

__all__ = ["to_csv"]


def to_csv(trace: Trace, path: str | PathLike[str]) -> None:
    """Write a trace as CSV with a header.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    columns = {name: values.tolist() for name, values in trace.columns().items()}
    if "address" in columns:
        columns["address"] = [hex(address) for address in columns["address"]]
    if "site" in columns:
        sites = [site_cell(site) for site in trace.sites]
        columns["site"] = [sites[number] if number >= 0 else "" for number in columns["site"]]
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
