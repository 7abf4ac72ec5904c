"""Attack any allocator: the kit that tests SmartPool's own, for everybody's.

>>> from smartpool.testing import check_allocator
>>> from smartpool import AdvancedMemoryPoolManager
>>> report = check_allocator(AdvancedMemoryPoolManager, driver="model:4MiB", close="close", examples=20)
>>> report.examples
20

``docs/testing.md`` begins with ten lines for an allocator of your own.
"""

from __future__ import annotations

from smartpool.errors import MissingPackageError

try:
    import hypothesis as _  # noqa: F401
except ImportError as error:
    raise MissingPackageError(
        "smartpool.testing needs Hypothesis, which is not installed; run: pip install hypothesis"
    ) from error

from smartpool.testing.checking import Report, check_allocator
from smartpool.testing.contract import Contract
from smartpool.testing.invariants import Found, Invariant, ViolationError
from smartpool.testing.machine import AllocatorMachine
from smartpool.testing.memory import Memory, address_of, host_read, host_write
from smartpool.testing.programs import programs, stream_programs
from smartpool.testing.reducing import run_program
from smartpool.testing.session import Session
from smartpool.testing.shapes import Shape, play, traces
from smartpool.testing.steps import Block
from smartpool.testing.strategies import ScriptedFault, arm, fault_scripts, interval_sets, requests, sizes
from smartpool.testing.stream_machine import StreamMachine, check_stream_order
from smartpool.testing.stream_session import StreamSession
from smartpool.testing.watching import WatchedDriver
from smartpool.testing.wording import Program

__all__ = [
    "AllocatorMachine",
    "Block",
    "Contract",
    "Found",
    "Invariant",
    "Memory",
    "Program",
    "Report",
    "ScriptedFault",
    "Session",
    "Shape",
    "StreamMachine",
    "StreamSession",
    "ViolationError",
    "WatchedDriver",
    "address_of",
    "arm",
    "check_allocator",
    "check_stream_order",
    "fault_scripts",
    "host_read",
    "host_write",
    "interval_sets",
    "play",
    "programs",
    "requests",
    "run_program",
    "sizes",
    "stream_programs",
    "traces",
]
