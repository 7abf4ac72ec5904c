from __future__ import annotations

import pytest
from attacks import found
from toys import CAPACITY, ToyPool

from smartpool.errors import ConfigurationError
from smartpool.testing import (
    Invariant,
    check_allocator,
)


def test_a_contract_that_promises_too_much_is_found_too():
    error = found(ToyPool, alignment=64, capacity=CAPACITY)
    assert error.invariant is Invariant.ALIGNMENT
    assert "expected a multiple of 64" in error.detail


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"alignment": 3}, "alignment"),
        ({"capacity": 0}, "capacity"),
        ({"zero_size": "maybe"}, "zero_size"),
        ({"bad_frees": "crash"}, "bad_frees"),
        ({"read": "read"}, "read"),
        ({"faults": True}, "faults"),
        ({"streams": 2}, "streams"),
        ({"examples": 0}, "examples"),
        ({"seconds": -1}, "seconds"),
        ({"accounting": lambda pool: {"used": 0}}, "accounting"),
    ],
)
def test_a_wrong_option_is_named(options, field):
    with pytest.raises(ConfigurationError) as caught:
        check_allocator(ToyPool, **options)
    assert caught.value.field == field
