"""The documentation as a site: ``sphinx-build -W docs site`` (extra ``docs``)."""

from __future__ import annotations

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
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # single backticks in docstrings name things

html_theme = "furo"
html_title = f"SmartPool {release}"
html_static_path = []
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00857a", "color-brand-content": "#2b62d9"},
    "dark_css_variables": {"color-brand-primary": "#2fd3c0", "color-brand-content": "#7aa7ff"},
}


def _once(app: object, what: str, name: str, found: object, skip: bool, options: object) -> bool | None:  # noqa: ARG001
    """Leave out on the page of `smartpool` what has a page of its own: one name, one place."""
    here = app.env.docname  # type: ignore[attr-defined]
    home = getattr(found, "__module__", None) or ""
    return True if here == "reference/smartpool" and home.startswith(ELSEWHERE) else None


ELSEWHERE = ("smartpool.errors", "smartpool.planner", "smartpool.trace", "smartpool.driver", "smartpool.dlpack")


def setup(app: object) -> None:
    app.connect("autodoc-skip-member", _once)  # type: ignore[attr-defined]
