"""Names that are imported when they are first used (PEP 562), so that importing a package stays cheap."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from importlib import import_module

from smartpool.interpreters import require_main_interpreter

__all__ = ["lazy_names", "renamed_names"]


def lazy_names(
    package: str, home_of: Mapping[str, str], modules: Collection[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package whose names live in other modules.

    `dir` then tells what is public, and nothing else: ``__all__`` and `modules`.

    Parameters
    ----------
    package
        The package's ``__name__``.
    home_of
        Name to the module that defines it.
    modules
        Public modules of the package, which are imported when they are first used, too.
    """

    def __getattr__(name: str) -> object:  # noqa: N807 - becomes the package's own
        home = home_of.get(name)
        if home is None and name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        require_main_interpreter()
        if home is None:
            try:
                return import_module(f"{package}.{name}")
            except ImportError as error:  # as everywhere where something may lack
                raise AttributeError(f"{package}.{name} cannot be imported: {error}") from error
        value = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)  # the next time it is found without asking
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*getattr(sys.modules[package], "__all__", home_of), *modules})

    return __getattr__, __dir__


def renamed_names(module: str, new_of: Mapping[str, str]) -> Callable[[str], object]:
    """Return ``__getattr__`` for a module that knows names by their former ones, for one release."""

    def __getattr__(name: str) -> object:  # noqa: N807 - becomes the module's own
        new = new_of.get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {new}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], new)

    return __getattr__
