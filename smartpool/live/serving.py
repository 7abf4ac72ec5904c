"""A pool's live page: the view and the server put together."""

from __future__ import annotations

from collections.abc import Iterable

from smartpool.live.server import LiveServer
from smartpool.live.view import LiveView, ViewedPool

__all__ = ["serve"]


def serve(
    pool: ViewedPool,
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    password: str | None = None,
    names: str | Iterable[str] = (),
) -> LiveServer:
    """Serve the live page of `pool` until the returned server is closed; see `SmartPool.serve`."""
    view = LiveView(pool)
    answers = {"/frame": view.frame, "/block": view.block}
    forget = pool.hooks.on_out_of_memory(view.note_failure)
    try:
        return LiveServer(answers, host=host, port=port, password=password, names=names, on_close=forget)
    except BaseException:
        forget()
        raise
