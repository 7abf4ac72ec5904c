"""Scripts and styles of a page put together, and the colors of `tokens.css` for whoever draws without CSS."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Final

__all__ = ["asset", "joined", "palette", "tier_color"]

_COLOR: Final = re.compile(r"--([\w-]+): light-dark\(#([0-9a-f]{6}), #([0-9a-f]{6})\)")


def joined(names: Iterable[str], package: str) -> str:
    """Return files of a package, or of this kit, one behind the other: one script, one style sheet."""
    return "".join(asset(name, package) for name in names)


@cache
def asset(name: str, package: str) -> str:
    """Return the text of a file of this kit, or else of `package`."""
    own = resources.files(__package__).joinpath(name)
    return (own if own.is_file() else resources.files(package).joinpath(name)).read_text(encoding="utf-8")


@cache
def palette(*, dark: bool) -> dict[str, tuple[int, int, int]]:
    """Return the colors of `tokens.css` by name, as red, green and blue.

    >>> palette(dark=True)["ink"], palette(dark=False)["surface"]
    ((233, 236, 241), (255, 255, 255))
    """
    return {
        name: tuple(bytes.fromhex(night if dark else day))  # type: ignore[misc]  # three bytes each
        for name, day, night in _COLOR.findall(asset("tokens.css", __package__))
    }


@cache
def tier_color(number: int) -> str:
    """Return the name of the color of a tier, by its place among the tiers; there are eight, then again.

    >>> tier_color(0), tier_color(9)
    ('t0', 't1')
    """
    return f"t{number % sum(re.fullmatch('t[0-9]', name) is not None for name in palette(dark=False))}"
