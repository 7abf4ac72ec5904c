"""Fixtures for the tests of DLPack."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from smartpool.dlpack import outstanding


@pytest.fixture
def nothing_outstanding() -> Iterator[None]:
    """Fail the test when exports of it are alive after it."""
    before = outstanding()
    yield
    if outstanding() > before:
        gc.collect()
        assert outstanding() <= before
