"""Tables are as wide as they are: what runs the tests may say otherwise for its own output."""

import pytest


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
