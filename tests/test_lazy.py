"""Names that are imported when they are first used."""

from __future__ import annotations

import posixpath
import sys
import types

import pytest

from smartpool.lazy import lazy_names


@pytest.fixture
def package():
    module = types.ModuleType("a_lazy_package")
    module.__getattr__, module.__dir__ = lazy_names(
        "a_lazy_package",
        {"join": "posixpath", "nowhere": "no.such.module"},
        modules=("missing",),
    )
    module.hidden = 5
    sys.modules["a_lazy_package"] = module
    yield module
    del sys.modules["a_lazy_package"]


def test_a_name_is_imported_once_and_kept(package):
    assert "join" not in vars(package)
    assert package.join is posixpath.join
    assert vars(package)["join"] is posixpath.join


def test_unknown_names_are_attribute_errors(package):
    with pytest.raises(AttributeError, match=r"module 'a_lazy_package' has no attribute 'other'"):
        package.other  # noqa: B018
    assert not hasattr(package, "other")
    assert getattr(package, "other", 5) == 5


def test_a_failing_import_shows(package):
    with pytest.raises(ModuleNotFoundError):
        package.nowhere  # noqa: B018


def test_dir_tells_them_all_and_nothing_else(package):
    assert dir(package) == ["join", "missing", "nowhere"]
    package.__all__ = ["nowhere", "hidden"]
    assert dir(package) == ["hidden", "missing", "nowhere"]


def test_a_module_that_cannot_be_imported_is_no_attribute(package):
    assert not hasattr(package, "missing")
    with pytest.raises(AttributeError, match=r"^a_lazy_package\.missing cannot be imported: ") as caught:
        package.missing  # noqa: B018
    assert isinstance(caught.value.__cause__, ImportError)
