"""What the tests of policies share."""

from __future__ import annotations

from smartpool.driver import ModelDriver
from smartpool.units import GiB


def make(kind, capacity=GiB, **options):
    return kind(ModelDriver(capacity), **options)
