"""The path where the manager was is good for one release more."""

from __future__ import annotations

import pytest

import smartpool


def test_the_old_path_leads_to_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"smartpool\.manager now"):
        from smartpool.pool.manager import AdvancedMemoryPoolManager  # noqa: PLC0415
    assert AdvancedMemoryPoolManager is smartpool.AdvancedMemoryPoolManager
