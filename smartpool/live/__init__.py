"""Looking at a pool while it works: a page in the browser, a view in the terminal, and traffic to look at.

``view`` makes frames of a pool, ``server`` serves the page, ``terminal`` draws in a terminal, and
``traffic`` plays a trace for those who have no program at hand.
"""

from __future__ import annotations

from smartpool.live.server import LiveServer
from smartpool.live.serving import serve
from smartpool.live.view import LiveView

__all__ = ["LiveServer", "LiveView", "serve"]
