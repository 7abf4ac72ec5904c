"""Steps that are undone: in which order, and which exception comes out."""

from __future__ import annotations

import pytest

from smartpool.errors import DriverError, SmartPoolError
from smartpool.pool.heap.undoing import Undo


def fail(error):
    raise error


def test_undos_are_called_last_first_when_the_block_fails():
    called = []
    undo = Undo()
    undo.callback(called.append, 1)
    undo.callback(called.append, 2)
    with pytest.raises(SmartPoolError), undo:
        raise SmartPoolError
    assert called == [2, 1]


def test_what_is_kept_is_not_undone():
    called = []
    with Undo() as undo:
        undo.callback(called.append, 1)
        undo.keep()
        undo.callback(called.append, 2)
    assert called == [2]  # registered afterwards, and not kept


def test_an_undo_that_fails_keeps_none_from_being_called():
    called, first, second = [], DriverError("unmap", "LOST"), DriverError("release", "LOST")
    begun = SmartPoolError()
    undo = Undo()
    undo.callback(called.append, 1)
    undo.callback(fail, second)
    undo.callback(fail, first)
    with pytest.raises(DriverError) as caught, undo:
        raise begun
    assert called == [1]
    assert caught.value is second
    assert second.__context__ is first
    assert first.__context__ is begun


def test_an_interrupt_comes_out_as_itself():
    interrupt = KeyboardInterrupt()
    undo = Undo()
    undo.callback(fail, DriverError("unmap", "LOST"))
    with pytest.raises(KeyboardInterrupt) as caught, undo:
        raise interrupt
    assert caught.value is interrupt


def test_an_undo_that_fails_without_a_failure_before_it_is_told():
    with pytest.raises(DriverError), Undo() as undo:
        undo.callback(fail, DriverError("unmap", "LOST"))
