"""The compiled front: what C++ frees is served again or given back, once, from any thread."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import defaultdict
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartpool.errors import MissingPackageError
from smartpool.interop import _torch_front
from smartpool.interop._torch_callbacks import AllocateFunction, FreeFunction, address_of
from smartpool.interop._torch_front import Front

LIMIT = 65536
STREAMS = (0, 1 << 40, (1 << 64) - 512)
FOREIGN = 77


class Caller:
    """A front as C++ sees it, before a pool that hands out new addresses."""

    def __init__(self):
        self.fresh, self.asked, self.given = count(1 << 30, 1 << 20), [], []

        def ask(size, device, stream):
            self.asked.append((size, device, stream))
            return next(self.fresh) if size else None

        asked = address_of(AllocateFunction, ask)
        self.front = Front(0, LIMIT, self.given.append, first=asked, second=asked, throw=asked, room=1024)
        self.front.admit(STREAMS)
        self.front.switch(on=True)
        self.allocate, self.free = AllocateFunction(self.front.allocate), FreeFunction(self.front.release)


class FrontMachine(RuleBasedStateMachine):
    """Whatever is called: an address is live, in the front, or given back, and a hit has size and stream."""

    @initialize(kinds=st.sampled_from([4, 16, 2048]), depth=st.sampled_from([1, 3, 64]))
    def begin(self, kinds, depth):
        self.patch = pytest.MonkeyPatch()
        for name, value in (
            ("_KINDS", kinds),
            ("_CROWDED", kinds * 3 // 4),
            ("_DEPTH", depth),
            ("_BUFFER", 8),
        ):
            self.patch.setattr(_torch_front, name, value)
        places = dict.fromkeys(("sizes", "streams", "counts", "large_kinds"), kinds)
        places |= {"buckets": 2 * kinds, "stacks": kinds * depth}
        self.patch.setattr(_torch_front, "_PLACES", _torch_front._PLACES | places)
        self.caller, self.live, self.marked, self.freed, self.on = Caller(), {}, set(), {}, True

    def teardown(self):
        self.patch.undo()

    sizes = st.sampled_from([1, 512, 513, 4096, LIMIT - 1, LIMIT, LIMIT + 1, 10 * LIMIT])

    @rule(size=sizes, device=st.sampled_from([0, 0, 0, 1]), stream=st.sampled_from([*STREAMS, FOREIGN]))
    def request(self, size, device, stream):
        before = len(self.caller.asked)
        address = self.caller.allocate(size, device, stream)
        assert address not in self.live
        if len(self.caller.asked) == before:
            assert self.on
            assert self.freed.pop(address) == (size, device, stream)
            assert address not in self.marked
            assert device == 0
            assert stream != FOREIGN
        else:
            assert self.caller.asked[-1] == (size, device, stream or None)
        self.live[address] = size, device, stream

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data):
        address = data.draw(st.sampled_from(sorted(self.live)))
        size, device, stream = self.freed[address] = self.live.pop(address)
        self.caller.free(address, size, device, stream)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), twice=st.booleans())
    def mark(self, data, twice):
        address = data.draw(st.sampled_from(sorted(self.live)))
        for _ in range(1 + twice):
            self.caller.front.mark(address)
        self.marked.add(address)

    @rule(everything=st.booleans())
    def drain(self, everything):
        self.caller.front.drain(everything=everything)
        self.take_back()
        kept = list(self.freed.values())
        assert not everything or not kept
        assert all(size < LIMIT and stream != FOREIGN and not device for size, device, stream in kept)
        assert self.marked.isdisjoint(self.freed)

    @rule(on=st.booleans())
    def switch(self, on):
        self.caller.front.switch(on=on)
        self.on = on
        if not on:
            self.take_back()
            assert not self.freed

    def take_back(self):
        for address in self.caller.given:
            del self.freed[address]  # once
            self.marked.discard(address)
        self.caller.given.clear()

    @invariant()
    def counts(self):
        if hasattr(self, "caller"):
            assert 0 <= self.caller.front.stacked <= len(self.freed)


TestFront = FrontMachine.TestCase
TestFront.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.fixture
def caller():
    return Caller()


def test_a_hit_calls_no_python(caller):
    address = caller.allocate(1000, 0, None)
    caller.free(address, 1000, 0, None)
    assert caller.allocate(1000, 0, None) == address
    assert len(caller.asked) == 1


def test_streams_that_share_a_bucket_have_stacks_of_their_own(monkeypatch):
    monkeypatch.setattr(_torch_front, "_KINDS", 128)
    monkeypatch.setattr(_torch_front, "_CROWDED", 128)
    caller, streams = Caller(), range(1, 120)
    caller.front.admit(streams)
    addresses = [caller.allocate(512, 0, stream) for stream in streams]
    for address, stream in zip(addresses, streams, strict=True):
        caller.free(address, 512, 0, stream)
    assert [caller.allocate(512, 0, stream) for stream in streams] == addresses


def test_nothing_is_asked_once_and_is_a_null_pointer(caller):
    assert caller.allocate(0, 0, None) is None
    assert len(caller.asked) == 1


def test_threads_take_and_give_while_others_drain(caller):
    owners, lock = defaultdict(int), threading.Lock()

    def hold(address, change):
        with lock:
            owners[address] += change
            assert owners[address] in (0, 1), "a block with two owners"

    wrong = []

    def work(number):
        try:
            for step in range(800):
                size, stream = 512 << step * number % 11, STREAMS[step % 3]
                address = caller.allocate(size, 0, stream)
                hold(address, 1)
                hold(address, -1)
                caller.free(address, size, 0, stream)
        except AssertionError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 6)]
    threads += [threading.Thread(target=caller.front.drain, kwargs={"everything": True}) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    caller.front.drain(everything=True)
    assert not wrong
    assert caller.front.stacked == 0
    assert sorted(caller.given) == sorted(owners)


def test_an_address_that_cannot_be_given_back_does_not_hold_the_others(caller):
    taken = []

    def give(address):
        if address == 2:
            raise KeyError(address)
        taken.append(address)

    caller.front._give = give
    for address in (1, 2, 3):
        caller.free(address, 512, 0, FOREIGN)
    with pytest.raises(KeyError):
        caller.front.drain()
    caller.front.drain()
    assert sorted(taken) == [1, 3]


def test_draining_within_draining_returns_at_once(caller):
    caller.front._give = lambda _: caller.front.drain()
    caller.free(1, 512, 0, FOREIGN)
    caller.front.drain()
    assert not caller.front._words[_torch_front._LIST]


def test_more_marks_than_there_is_room_for_turn_the_stacks_off(caller, monkeypatch):
    for address in range(1, _torch_front._NOTED + 2):
        caller.front.mark(address)
    caller.front.switch(on=True)
    caller.free(9999, 512, 0, None)
    assert caller.front.stacked == 0
    caller.front.drain()
    assert caller.given == [9999]


def test_a_forked_child_serves_nothing(caller):
    address = caller.allocate(1000, 0, None)
    caller.free(address, 1000, 0, None)
    caller.front._words[_torch_front._LOCK] = 1  # as if another thread were inside
    child = os.fork()
    if not child:
        os._exit(0 if caller.allocate(1000, 0, None) != address else 1)
    caller.front._words[_torch_front._LOCK] = 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert caller.allocate(1000, 0, None) == address


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    with pytest.raises(MissingPackageError, match=r"llvmlite\.binding .*extra 'torch'"):
        Front(0, LIMIT, print, first=0, second=0, throw=0, room=1024)


def test_the_code_is_for_the_processor_at_hand_and_for_arm():
    """What is written is no processor's: the compiler makes either of it."""
    binding = pytest.importorskip("llvmlite.binding")
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    code = _torch_front._written(1 << 20, 0, LIMIT, 16, 32, 48, 1024)
    for triple in ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"):
        module = binding.parse_assembly(code)
        module.verify()
        machine = binding.Target.from_triple(triple).create_target_machine(opt=2)
        text = machine.emit_assembly(module)
        assert all(f"{name}:" in text for name in ("allocate", "release", "collect"))


def test_addresses_are_words():
    assert ctypes.sizeof(ctypes.c_void_p) == 8
