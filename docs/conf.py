"""The documentation as a site: ``sphinx-build -W docs site`` (extra ``docs``)."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import smartpool

project = "SmartPool"
author = "The SmartPool developers"
release = version = smartpool.__version__
project_copyright = "2026, the SmartPool developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["site"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# What a class has from another of ours is its own to a reader; what Python gives it is not.
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "inherited-members": "BaseException, Enum, Generic, Protocol, dict, int, list, str, tuple",
}
suppress_warnings = ["ref.python"]  # names of attributes are taken for references, and several classes have one
default_role = "code"  # single backticks in docstrings name things

html_theme = "furo"
html_title = f"SmartPool {release}"
html_static_path = []
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00857a", "color-brand-content": "#2b62d9"},
    "dark_css_variables": {"color-brand-primary": "#2fd3c0", "color-brand-content": "#7aa7ff"},
}


def modules() -> list[str]:
    """Return the modules of the reference, in the order of its pages."""
    pages = sorted((Path(__file__).parent / "reference").glob("*.md"))
    return [module for page in pages for module in re.findall(r"automodule:: (\S+)", page.read_text("utf-8"))]


def shown_elsewhere() -> set[int]:
    """Return what has a page of its own beside the page of `smartpool`: one name, one place."""
    pages = [importlib.import_module(name) for name in modules() if name != "smartpool"]
    return {id(getattr(module, name)) for module in pages for name in module.__all__}


def _once(app: object, what: str, name: str, found: object, skip: bool, options: object) -> bool | None:  # noqa: ARG001
    here = app.env.docname  # type: ignore[attr-defined]
    return True if here == "reference/smartpool" and id(found) in shown_elsewhere() else None


def setup(app: object) -> None:
    app.connect("autodoc-skip-member", _once)  # type: ignore[attr-defined]
