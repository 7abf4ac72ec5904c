# ruff: noqa: SLF001 - this module is a part of the pool
"""Captures that began without `SmartPool.capture`: where their requests are served from, and how long.

Problem: frameworks capture streams and tell nobody. The pool finds out when it searches for a request of
such a stream. Then the capture is under way, and nothing may be waited for, recorded or asked, so that of
no gap is it known whether work of before is done with it.
Method: such requests get new memory, in raw segments, which are a `GraphMemory` of the capture's id: what
is freed is reused inside of the capture, and by nobody else. The bins of the stream are put aside, so
that all of its further requests are seen, too.
Bound: nobody tells when the last graph over the memory is gone, so it is held until
``trim(captures=True)`` or the pool's end. What bins served before the first search was not seen.
Rejected: refusing (CuPy and others ask nobody); asking at each request that a bin can serve (it costs more
than the request); behaving as beside an announced capture until this one is over (that can only be asked of
its stream, and CUDA crashes on streams that are gone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpool.errors import DriverOutOfMemoryError
from smartpool.log import LOGGER
from smartpool.pool.graphs.captures import GraphPool, become_graph_pool
from smartpool.pool.graphs.memory import FoundMemory

if TYPE_CHECKING:
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["serve_captured"]


def serve_captured(
    manager: AdvancedMemoryPoolManager, nbytes: int, stream: int, capture: int, alignment: int
) -> int:
    """Return the address of a block for a request of `stream`, which is in the capture of that id."""
    with manager.driver.beside_capture(), manager._writing():
        if manager._closed:
            raise manager._closed_error()
        pool = become_graph_pool(manager)
        memory = _memory_of(pool, capture)
        for bin_ in list(pool._bins_of.setdefault(stream, {}).values()):
            if bin_:
                bin_.touched.add(bin_)
        pool._bins_of[stream].clear()
        try:
            return memory.take(nbytes, stream, alignment, memory.take_segment)
        except DriverOutOfMemoryError as error:
            told = pool._out_of_memory(pool._new_bin(nbytes, stream), error.code)
            told.add_note("a capture outside of pool.capture(stream) is served from new memory only")
            raise told from error


def _memory_of(pool: GraphPool, capture: int) -> FoundMemory:
    memory = pool.found.get(capture)
    if memory is None or memory.closed:
        if not pool.told_of_found:
            pool.told_of_found = True
            LOGGER.warning(
                "%s was asked for memory by a stream that is being captured outside of pool.capture(stream): "
                "what such graphs use is held until trim(captures=True), or until the pool is closed",
                repr(pool),  # a record that is kept is not to keep the pool
            )
        pool.found[capture] = memory = FoundMemory(pool)
        pool.graphs.append(memory)
    return memory
