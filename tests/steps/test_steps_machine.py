"""Any program, on real memory: steps marked, left and entered again, and every byte kept.

The machine plays a program that repeats itself, and departs from it in every way: requests are missing
or come on top, blocks outlive their place, other threads and streams take part, memory is short. On
`cpu` each block is filled with a byte of its own, which must be there when it is freed.
"""

from __future__ import annotations

import ctypes
import threading
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartpool.config import SmartPoolConfig
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import DriverError, OutOfMemoryError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import KiB, MiB

CAPACITY = 48 * MiB
SIZES = [512, 700, 3 * KiB, 70 * KiB, 100 * KiB, 300 * KiB, 1 * MiB, 2 * MiB + 512, 3 * MiB]


def program(seed: int, requests: int = 40) -> list[tuple[str, int]]:
    """A step: ("take", bytes) and ("give", number of the request), all freed in its end."""
    random = Random(seed)
    steps: list[tuple[str, int]] = []
    held: list[int] = []
    for number in range(requests):
        steps.append(("take", random.choice(SIZES) + 512 * number))
        held.append(number)
        while len(held) > 6 or (held and random.random() < 0.4):
            steps.append(("give", held.pop(random.randrange(len(held)))))
    return steps + [("give", number) for number in held]


def _bytes_of(pointer: int, nbytes: int) -> np.ndarray:
    """The first byte of every unit of 512 of a block: no two blocks share a unit."""
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(pointer), dtype=np.uint8)[::512]


class Blocks:
    """Live blocks with their contents: the naive model."""

    def __init__(self, pool: AdvancedMemoryPoolManager, *, real: bool):
        self.pool = pool
        self.real = real
        self.live: dict[int, tuple[int, int]] = {}
        self.count = 0

    def take(self, nbytes: int, stream: object = None) -> int | None:
        try:
            pointer = self.pool.malloc(nbytes, stream)
        except OutOfMemoryError:
            return None
        for other, (size, _) in self.live.items():
            assert pointer + nbytes <= other or other + size <= pointer, "two live blocks overlap"
        self.count += 1
        value = self.count % 251 + 1
        self.live[pointer] = (nbytes, value)
        if self.real:
            _bytes_of(pointer, nbytes)[:] = value
        return pointer

    def give(self, pointer: int, stream: object = None) -> None:
        nbytes, value = self.live.pop(pointer)
        if self.real:
            assert (_bytes_of(pointer, nbytes) == value).all(), "somebody wrote into a live block"
        self.pool.free(pointer, stream)


class StepsMachine(RuleBasedStateMachine):
    """One pool, one program, and every way to depart from it."""

    driver_type = CpuDriver

    @initialize(seed=st.integers(0, 30))
    def open(self, seed):
        self.driver = CpuDriver() if self.driver_type is CpuDriver else ModelDriver(CAPACITY)
        self.pool = AdvancedMemoryPoolManager(self.driver, SmartPoolConfig(max_bytes=CAPACITY))
        self.stream = self.driver.create_stream()
        self.blocks = Blocks(self.pool, real=self.driver_type is CpuDriver)
        self.steps, self.at, self.held = program(seed), 0, {}
        for _ in range(4):
            self.follow_with_marks(len(self.steps))
        assert self.pool.steps.statistics.hits >= 40

    def go_on(self, *, skip=False, keep=False, stream=None):
        """Do the next thing of the program; its first and last are where a step begins and ends."""
        kind, value = self.steps[self.at]
        number = sum(kind == "take" for kind, _ in self.steps[: self.at])
        if kind == "take" and not skip:
            self.held[number] = self.blocks.take(value)
        elif kind == "give":
            pointer = self.held.pop(value, None)
            if pointer is not None and not keep:
                self.blocks.give(pointer, stream)
        self.at = (self.at + 1) % len(self.steps)

    def follow_with_marks(self, count, **surprise):
        for _ in range(count):
            if self.at == 0 and not self.pool.steps.active:
                self.pool.begin_step("step", wait_for_plan=True)
            self.go_on(**surprise)
            if self.at == 0 and self.pool.steps.active:
                self.pool.end_step()

    # ------------------------------------------------------------------ what happens

    @rule(count=st.integers(1, 120))
    def follow(self, count):
        self.follow_with_marks(count)

    @rule(count=st.integers(1, 4))
    def miss_some(self, count):
        self.follow_with_marks(count, skip=True)

    @rule(count=st.integers(1, 4))
    def keep_some(self, count):
        """Blocks outlive what the plan says; they are given back some time."""
        self.follow_with_marks(count, keep=True)

    @rule(count=st.integers(1, 10))
    def free_on_another_stream(self, count):
        self.follow_with_marks(count, stream=self.stream)

    @rule(size=st.sampled_from(SIZES), planned=st.booleans(), count=st.integers(1, 4), held=st.booleans())
    def ask_for_more(self, size, planned, count, held):
        if planned:
            size = next(value for kind, value in self.steps[self.at :] + self.steps if kind == "take")
        for _ in range(count):
            pointer = self.blocks.take(size)
            if pointer is not None and not held:
                self.blocks.give(pointer)

    @rule(which=st.integers(0, 100), elsewhere=st.booleans())
    def free_out_of_turn(self, which, elsewhere):
        """Any live block, also on another thread."""
        if not self.blocks.live:
            return
        pointer = list(self.blocks.live)[which % len(self.blocks.live)]
        self.held = {number: held for number, held in self.held.items() if held != pointer}
        if elsewhere:
            self.on_a_thread(lambda: self.blocks.give(pointer))
        else:
            self.blocks.give(pointer)

    @rule(sizes=st.lists(st.sampled_from(SIZES), max_size=6))
    def another_thread_asks(self, sizes):
        planned = [value for kind, value in self.steps if kind == "take"][:3]
        self.on_a_thread(lambda: [self.blocks.take(size) for size in [*sizes, *planned]])

    @rule(which=st.integers(0, 100))
    def use_elsewhere(self, which):
        if self.blocks.live:
            pointer = list(self.blocks.live)[which % len(self.blocks.live)]
            self.pool.record_stream(pointer, self.stream)

    @rule(size=st.sampled_from(SIZES))
    def ask_on_another_stream(self, size):
        self.blocks.take(size, self.stream)

    @rule(seed=st.integers(100, 105))
    def do_something_else(self, seed):
        for kind, value in program(seed, 100):
            if kind == "take":
                pointer = self.blocks.take(value)
                if pointer is not None:
                    self.blocks.give(pointer)

    @rule()
    def flush(self):
        self.pool.flush()

    @rule(wait=st.booleans())
    def trim(self, wait):
        self.pool.trim(wait=wait)

    @rule()
    def run_out_of_memory(self):
        live = sum(size for size, _ in self.blocks.live.values())
        with pytest.raises(OutOfMemoryError):
            self.pool.malloc(CAPACITY - live + MiB)

    @rule(call=st.sampled_from(["create_chunk", "map_chunk", "enable_access", "record_event", "wait_event"]))
    def a_driver_call_fails(self, call):
        """Somewhere in the next requests; whoever asked learns of it, and nothing else is wrong."""
        armed = self.driver.faults.fail(call)
        for _ in range(30):
            try:
                self.follow_with_marks(1)
            except DriverError:
                assert armed.fired
                self.at = (self.at + 1) % len(self.steps)
        self.driver.faults.clear()
        if self.pool.steps.active:
            self.pool.end_step()

    @rule()
    def break_off(self):
        if self.pool.steps.active:
            self.pool.end_step()

    @precondition(lambda self: not self.blocks.live)
    @rule()
    def come_back(self):
        """However far it strayed, the pool serves the program from a plan again in the end."""
        if self.pool.steps.active:
            self.pool.end_step()
        self.at, before = 0, self.pool.steps.statistics.hits
        for _ in range(150):
            self.follow_with_marks(len(self.steps))
            if self.pool.steps.statistics.hits > before + 80:
                return
        raise AssertionError("it never came back to the plan")

    def on_a_thread(self, action):
        caught = []

        def run():
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - raised below
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if caught:
            raise caught[0]

    # ------------------------------------------------------------------ what holds

    @invariant()
    def is_whole(self):
        if hasattr(self, "pool"):
            self.pool.check()
            assert self.pool.live_blocks() == {p: n for p, (n, _) in self.blocks.live.items()}

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        live = list(self.blocks.live)
        for pointer in live[::2]:
            self.blocks.give(pointer)
        self.pool.close()
        for pointer in live[1::2]:
            self.blocks.give(pointer)
        self.driver.synchronize()
        assert self.pool.reserved_bytes == 0


class StepsOnTheModel(StepsMachine):
    driver_type = ModelDriver


def settled(examples, steps):
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


TestSteps = StepsMachine.TestCase
TestSteps.settings = settled(10, 25)
TestStepsOnTheModel = StepsOnTheModel.TestCase
TestStepsOnTheModel.settings = settled(10, 25)
