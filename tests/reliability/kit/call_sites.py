"""Where the pool calls the driver: found in its source, and seen as it runs.

The two must agree: a place in the source that no scenario reaches is one whose failure was never
tried, and a call that runs and is not in the source was written in a way that the search misses.
"""

import ast
import sys
from pathlib import Path

from rooms import PACKAGES

import smartpool
from smartpool.driver.faults import CALLS

PACKAGE = Path(smartpool.__file__).parent
# Where every driver call is made to fail.
PARTS = (*(f"{package}/**/*.py" for package in PACKAGES), "manager.py", "owner.py")


def _made_to_fail(path):
    return any(path in PACKAGE.glob(part) for part in PARTS)


def in_source():
    """Return the places that make a call of the driver, or hand it on, as (file, line, column, call)."""
    places = set()
    for part in PARTS:
        for path in sorted(PACKAGE.glob(part)):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            name = path.relative_to(PACKAGE).as_posix()
            known = set()
            for call in (node for node in nodes if isinstance(node, ast.Call)):
                for node in filter(_driver_call, (call.func, *call.args)):
                    places.add((name, call.lineno, call.col_offset, node.attr))
                    known.add(node)
            unknown = [node.lineno for node in nodes if _driver_call(node) and node not in known]
            assert not unknown, (
                f"{name}, lines {unknown}: calls of the driver that this search does not follow"
            )
    return places


def _driver_call(node):
    """Return whether a piece of source names a call of the driver, such as ``self._driver.unmap``."""
    if isinstance(node, ast.Attribute) and node.attr in CALLS:
        owner = node.value
        name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
        return name.strip("_") == "driver"
    return False


def running(call):
    """Return the place that makes the driver call `call` now, or None when it is not the pool's."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE not in path.parents:
            # The test's own device stands between; a test that calls the driver itself ends the search.
            if frame.f_code.co_name not in CALLS and path.name not in ("call_sites.py", "attack.py"):
                return None
        elif path.relative_to(PACKAGE).parts[0] != "driver":
            name = path.relative_to(PACKAGE).as_posix()
            line, _, column, _ = _position(frame)
            return (name, line, column, call) if _made_to_fail(path) else None
        frame = frame.f_back
    return None


def _position(frame):
    for index, position in enumerate(frame.f_code.co_positions()):
        if index == frame.f_lasti // 2:
            return position
    raise AssertionError("an instruction has a place")
