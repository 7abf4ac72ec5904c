"""``smartpool demo`` shows the whole of it in a few seconds, on a machine without a GPU.

It hands out buffers and reads them with NumPy through DLPack, replays real GPU workloads that were
recorded on an H200 against SmartPool and models of its peers, and draws memory over time.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import smartpool
from smartpool.cli.arguments import add_command
from smartpool.cli.console import make_console
from smartpool.cli.replays import DEFAULT_DEVICE, find_trace, play, runs_as_json
from smartpool.cli.targets import HTML, check_target, written_to
from smartpool.dlpack import DeviceType
from smartpool.errors import DLPackError
from smartpool.report.page import write_page
from smartpool.report.picture import picture
from smartpool.report.table import new_table, print_runs, print_table
from smartpool.trace.baselines import PEERS
from smartpool.trace.bundled import bundled_names
from smartpool.trace.targets import SMARTPOOL
from smartpool.units import format_bytes

if TYPE_CHECKING:  # rich is an extra
    from rich.console import Console

__all__ = ["add_parser", "run"]

DEFAULT_OUTPUT: Final = "smartpool-demo.html"

_ARRAYS: Final = (
    ("mask", (4096,), "bool"),
    ("tokens", (8, 2048), "int64"),
    ("weights", (1024, 1024), "float32"),
)


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers, __name__, run, help="see it work: buffers, a replay of real traces, a picture"
    )
    parser.add_argument(
        "--device", default="cpu", help="where to allocate the buffers: cpu or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--trace",
        action="append",
        metavar="TRACE",
        help=f"replay this trace; may be given again (default: {', '.join(bundled_names())})",
    )
    parser.add_argument(
        "-o",
        "--output",
        default=DEFAULT_OUTPUT,
        metavar="FILE",
        help="the picture, an HTML page that opens offline (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    console = None if args.json else make_console()
    check_target(args.output, reads=args.trace or (), endings=HTML, prints="the table")
    traces = [find_trace(name) for name in args.trace or bundled_names()]
    buffers = show_buffers(args.device)
    if console:
        _print_buffers(buffers, console)
        console.print(
            f"\n[bold]Replay of {len(traces)} recorded GPU workloads[/] on {DEFAULT_DEVICE}: "
            "addresses without memory, driver time by costs measured on an H200"
        )
    runs = play(traces, [SMARTPOOL, *PEERS], DEFAULT_DEVICE)
    with written_to(args.output) as target:
        path = write_page(target, picture(runs, title="SmartPool beside its peers")).resolve()
    if console:
        print_runs(runs, console)
        console.print("\n[bold]Memory over time[/], a picture to open in a browser:")
        console.print(str(path), markup=False, soft_wrap=True)
    else:
        print(json.dumps({**runs_as_json(runs), "buffers": buffers, "picture": str(path)}, indent=1))
    return 0


def show_buffers(device: str) -> dict[str, Any]:
    """Allocate on `device`, let it fill the buffers, and read them with NumPy through DLPack.

    What is returned is ready for JSON. Of each buffer, ``shared`` says whether NumPy looked at its own bytes
    or, for memory that it cannot reach, at a copy; ``reused`` says whether freed memory was handed out again.

    Raises
    ------
    DLPackError
        When NumPy does not see the bytes that the device wrote, or cannot read the device at all.
    """
    with smartpool.SmartPool(device) as pool:
        driver = pool.managers[0].driver
        held, sights = [], []
        for byte, (name, shape, dtype) in enumerate(_ARRAYS):
            buffer = pool.empty(shape, dtype)
            driver.fill(buffer.pointer, byte, buffer.nbytes, driver.default_stream)
            driver.synchronize()
            array = _as_array(buffer)
            seen = array.reshape(-1).view(np.uint8)
            if not (seen == byte).all():
                raise DLPackError(f"expected NumPy to see bytes of {byte} in {name!r}, got {seen}")
            held.append(buffer)
            sights.append({
                "name": name,
                "shape": buffer.shape,
                "dtype": str(array.dtype),
                "nbytes": buffer.nbytes,
                "address": buffer.pointer,
                "shared": array.ctypes.data == buffer.pointer,
            })  # fmt: skip
        figures = pool.get_statistics()["smartpool_stats"]
        del buffer, array, seen  # the last ones to hold the last block
        freed = held.pop()
        address, nbytes = freed.pointer, freed.nbytes
        del freed
        return {
            "device": driver.name,
            "sights": sights,
            "live_bytes": figures["live_bytes"],
            "reserved_bytes": figures["reserved_bytes"],
            "reused": pool.allocate(nbytes).pointer == address,
        }


def _as_array(buffer: smartpool.Buffer) -> Any:
    """Return NumPy's view of the buffer, or a copy of it on the host where NumPy cannot look."""
    if buffer.__dlpack_device__()[0] == DeviceType.CPU:
        return np.from_dlpack(buffer)
    return np.from_dlpack(buffer, device="cpu", copy=True)


def _print_buffers(buffers: dict[str, Any], console: Console) -> None:
    console.print(
        f"[bold]Buffers on {buffers['device']}[/], filled by the device, read by NumPy through DLPack"
    )
    table = new_table("buffer", "shape", "dtype", "size", "address", "NumPy reads")
    for sight in buffers["sights"]:
        table.add_row(
            sight["name"],
            " x ".join(map(str, sight["shape"])),
            sight["dtype"],
            format_bytes(sight["nbytes"]),
            hex(sight["address"]),
            "the same bytes" if sight["shared"] else "a copy",
        )
    print_table(table, console, spare=("address", "shape", "dtype", "NumPy reads"))
    console.print(
        f"{format_bytes(buffers['live_bytes'])} live, {format_bytes(buffers['reserved_bytes'])} reserved; "
        f"the memory of a freed buffer was {'' if buffers['reused'] else 'not '}handed out again"
    )
