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
from smartpool.graphs.memory import FoundMemory
from smartpool.log import LOGGER

if TYPE_CHECKING:
    from smartpool.graphs.captures import Graphs
    from smartpool.pool.slow_path import SlowPath

__all__ = ["serve_found"]


def serve_found(  # noqa: PLR0917 - called in one place
    graphs: Graphs, pool: SlowPath, nbytes: int, stream: int, capture: int, alignment: int
) -> int:
    """Return the address of a block for a request of `stream`, which is in the capture of that id."""
    with pool.driver.beside_capture(), pool.writing():
        if pool.closed:
            raise pool.closed_error()
        memory = _memory_of(graphs, pool, capture)
        for bin_ in list(pool.bins_of.setdefault(stream, {}).values()):
            if bin_:
                bin_.touched.add(bin_)
        pool.bins_of[stream].clear()
        try:
            return memory.take(nbytes, stream, alignment, memory.take_segment)
        except DriverOutOfMemoryError as error:
            told = pool.out_of_memory(pool.new_bin(nbytes, stream), error.code)
            told.add_note("a capture outside of pool.capture(stream) is served from new memory only")
            raise told from error


def _memory_of(graphs: Graphs, pool: SlowPath, capture: int) -> FoundMemory:
    memory = graphs.found.get(capture)
    if memory is None or memory.closed:
        if not graphs.told_of_found:
            graphs.told_of_found = True
            LOGGER.warning(
                "the pool on %s was asked for memory by a stream that is being captured outside of "
                "pool.capture(stream): what such graphs use is held until trim(captures=True), or until the "
                "pool is closed",
                pool.driver.name,
            )
        graphs.found[capture] = memory = FoundMemory(pool, graphs)
        graphs.memories.append(memory)
    return memory
