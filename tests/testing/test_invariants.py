from __future__ import annotations

from toys import PLANTED

from smartpool.testing import (
    Invariant,
)


def test_every_invariant_but_the_streams_has_a_bug():
    assert {planted.breaks for planted in PLANTED} == set(Invariant) - {Invariant.STREAM_ORDER}
