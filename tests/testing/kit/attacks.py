"""What the tests of the testing kit share."""

from __future__ import annotations

import pytest
from hypothesis import settings
from toys import ToyPool
from waiting import PATIENCE_S

from smartpool.testing import Contract, ViolationError, check_allocator

FEW = settings(max_examples=40, deadline=None)

TOY = Contract(factory=ToyPool, capacity=4096, alignment=16)


def found(factory, **options):
    with pytest.raises(ViolationError) as caught:
        check_allocator(factory, **{"seconds": PATIENCE_S, **options})
    return caught.value
