"""Descriptors with one owner: closed once, when nobody holds them, without a word."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path

import pytest

from smartpool.descriptors import Descriptor

if sys.platform != "linux":
    pytest.skip("asks /proc", allow_module_level=True)


def is_open(number):
    return Path(f"/proc/self/fd/{number}").exists()


def test_dropping_closes_in_cycles_too():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file, cycle = Descriptor.of(os.dup, 0), [Descriptor("/dev/null")]
        numbers = file.fileno(), cycle[0].fileno()
        cycle.append(cycle)
        assert all(map(is_open, numbers))
        del file, cycle
        gc.collect()
    assert not any(map(is_open, numbers))


def test_closing_twice_closes_once():
    file = Descriptor.of(os.dup, 0)
    number = file.fileno()
    file.close()
    stranger = os.dup(0)
    assert stranger == number
    file.close()
    del file
    assert is_open(stranger)
    os.close(stranger)


def test_it_is_not_inherited_and_a_failure_to_make_one_comes_out():
    assert not os.get_inheritable(Descriptor.of(os.dup, 0).fileno())
    with pytest.raises(OSError, match="Bad file"):
        Descriptor.of(os.dup, -1)
