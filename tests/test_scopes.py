"""Scopes: entered again, by ``with`` and ``async with``, and around the body of every kind of function."""

from __future__ import annotations

import ast
import asyncio
import contextvars
import functools
import inspect
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import smartpool
from smartpool import MiB, SmartPool, SmartPoolConfig
from smartpool.driver.cpu import CpuDriver
from smartpool.errors import ScopeError, StepError
from smartpool.scopes import Scope, holds, scoped
from smartpool.streams import StreamSet
from smartpool.telemetry.labels import current_label
from smartpool.trace.targets import open_target

PACKAGE = Path(smartpool.__file__).parent
VARIABLE = contextvars.ContextVar("VARIABLE", default="outside")


@scoped
def noted(log):
    """A scope that writes down when it is entered and left, and sets a variable."""
    log.append("entered")
    with holds(VARIABLE, "inside"):
        try:
            yield log
        finally:
            log.append("left")


class Pause:
    """What a coroutine waits for until it is resumed."""

    def __await__(self):
        return (yield)


def finish(awaitable):
    """Run what is awaited to its end, however often it pauses."""

    async def wait():
        return await awaitable

    waiting = wait()
    try:
        while True:
            waiting.send(None)
    except StopIteration as stop:
        return stop.value


# ---------------------------------------------------------------------- every kind of function


def plain(*arguments):
    arguments[-1].append(f"body {VARIABLE.get()}")
    return "done"


async def coroutine(*arguments):
    await Pause()
    return plain(*arguments)


def generator(*arguments):
    yield 1
    plain(*arguments)
    yield 2


async def asynchronous(*arguments):
    yield 1
    await Pause()
    plain(*arguments)
    yield 2


async def collected(values):
    return [value async for value in values]


USED_UP = {
    plain: lambda made: made,
    coroutine: finish,
    generator: list,
    asynchronous: lambda made: finish(collected(made)),
}
FORMS = {
    "function": lambda function, scope: scope(function),
    "partial": lambda function, scope: scope(functools.partial(function, "first")),
    "instance": lambda function, scope: scope(type("Callable", (), {"__call__": function})()),
    "method": lambda function, scope: type("Holder", (), {"method": scope(function)})().method,
    "static method": lambda function, scope: (
        type("Holder", (), {"method": staticmethod(scope(function))}).method
    ),
    "decorated twice": lambda function, scope: scoped(plain_scope)()(scope(function)),
}


def plain_scope():
    yield


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", USED_UP)
def test_the_whole_body_is_in_the_scope(function, form):
    log = []
    decorated = FORMS[form](function, noted(log))
    for _ in range(2):
        log.clear()
        assert USED_UP[function](decorated(log)) in ("done", [1, 2])
        assert log == ["entered", "body inside", "left"]
        assert VARIABLE.get() == "outside"


@pytest.mark.parametrize("function", USED_UP)
def test_a_decorated_function_is_of_its_kind(function):
    decorated = noted([])(function)
    for kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert kind(decorated) == kind(function)
    assert decorated.__name__ == function.__name__


@pytest.mark.parametrize("nonsense", [None, "text", int, staticmethod(plain), classmethod(plain)])
def test_what_is_no_function_is_refused(nonsense):
    with pytest.raises(ScopeError, match=r"expected a function to be decorated by noted\(\)"):
        noted([])(nonsense)


def test_calls_at_the_same_time_have_a_scope_each():
    log = []

    @noted(log)
    def nested(depth):
        if depth:
            nested(depth - 1)
            yield_to = threading.Thread(target=lambda: list(values()))
            yield_to.start()
            yield_to.join()

    @noted(log)
    def values():
        yield 1

    nested(2)
    assert log.count("entered") == log.count("left") == 5


# ---------------------------------------------------------------------- generators as they are


class ThrownError(Exception):
    """What the caller throws into a generator."""


def talkative(log):
    """Answer everything: values, exceptions, and the wish that it ends."""
    heard = "first"
    for number in range(5):
        try:
            heard = yield (number, heard, VARIABLE.get())
        except ThrownError as error:
            heard = repr(error)
            if number == 3:
                raise ZeroDivisionError from error
        finally:
            log.append(number)
    return "returned"


async def talkative_too(log):
    heard = "first"
    for number in range(5):
        try:
            await Pause()
            heard = yield (number, heard, VARIABLE.get())
        except ThrownError as error:
            heard = repr(error)
            if number == 3:
                raise ZeroDivisionError from error
        finally:
            log.append(number)


def conversation(values, words):
    """Return what a generator says to each word, and how it ends."""
    said = []
    for word in words:
        try:
            said.append(values.send(word) if isinstance(word, str | None) else values.throw(word))
        except BaseException as error:  # noqa: BLE001 - that is an answer, too
            said.append((type(error), getattr(error, "value", None)))
    said.append(values.close())
    return said


class Driven:
    """An asynchronous generator, spoken to as if it were none."""

    def __init__(self, values):
        self.values = values

    def send(self, word):
        return finish(self.values.asend(word))

    def throw(self, error):
        return finish(self.values.athrow(error))

    def close(self):
        return finish(self.values.aclose())


WORDS = st.lists(st.sampled_from([None, "word", ThrownError("thrown"), GeneratorExit()]), max_size=8)


@given(words=WORDS)
@pytest.mark.parametrize("function", [talkative, talkative_too])
def test_a_decorated_generator_answers_as_it_would(function, words):
    """But for the variable, which is what the scope says in the body, and as ever for who asks."""
    wrap = Driven if function is talkative_too else lambda values: values
    bare, log, decorated_log = [], [], []
    expected = conversation(wrap(function(bare)), words)
    said = conversation(wrap(noted(decorated_log)(function)(log)), words)
    inside = [(*each[:2], "inside") if len(each or ()) == 3 else each for each in expected]
    assert said == inside
    assert log == bare
    assert decorated_log.count("entered") == decorated_log.count("left")
    assert VARIABLE.get() == "outside"


def test_the_caller_of_a_generator_is_not_in_its_scope():
    @noted([])
    def values():
        while True:
            yield VARIABLE.get()

    made = values()
    with holds(VARIABLE, "the caller's"):
        assert next(made) == "inside"
        assert VARIABLE.get() == "the caller's"
        assert next(made) == "inside"
    made.close()
    assert VARIABLE.get() == "outside"


def test_a_generator_that_is_dropped_leaves_its_scope():
    log = []
    next(noted(log)(generator)(log))
    assert log == ["entered", "left"]


def test_an_event_loop_that_ends_leaves_the_scopes_of_its_generators():
    log = []

    async def main():
        async for _ in noted(log)(asynchronous)(log):
            break
        values = noted(log)(asynchronous)(log)
        await anext(values)
        await anext(log_and_wait := noted(log)(slow)(log))
        return values, log_and_wait

    async def slow(log):
        yield 1
        await asyncio.sleep(3600)

    asyncio.run(main())
    assert log.count("entered") == log.count("left") == 3


# ---------------------------------------------------------------------- entered by hand


def test_a_scope_is_entered_again_but_not_while_it_is_entered():
    log = []
    scope = noted(log)
    for _ in range(2):
        with scope as value:
            assert value is log
            with pytest.raises(ScopeError, match="entered already"), scope:
                pass
            with pytest.raises(ScopeError, match="entered already"):
                finish(scope.__aenter__())
    assert log == ["entered", "left"] * 2
    assert repr(scope) == "<Scope of noted: to be entered>"
    with pytest.raises(ScopeError, match="was not"):
        scope.__exit__(None, None, None)


def test_a_scope_that_another_thread_is_in_is_refused():
    scope, refused = noted([]), []

    def enter():
        with pytest.raises(ScopeError), scope:
            pass
        refused.append(True)

    with scope:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert refused


def test_a_scope_that_could_not_be_entered_can_be_once_more():
    attempts = []

    @scoped
    def at_the_second_attempt():
        attempts.append(1)
        if len(attempts) == 1:
            raise ZeroDivisionError
        yield

    scope = at_the_second_attempt()
    with pytest.raises(ZeroDivisionError), scope:
        pass
    with scope:
        pass


def test_an_exception_in_the_block_goes_through():
    log = []

    async def fail():
        async with noted(log):
            await Pause()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        finish(fail())
    with pytest.raises(ZeroDivisionError), noted(log):
        raise ZeroDivisionError
    assert log == ["entered", "left"] * 2


def test_a_variable_that_is_held_may_be_left_in_another_context():
    """As where a test framework runs the two halves of a fixture in two tasks."""
    held = holds(VARIABLE, "there")
    context = contextvars.copy_context()
    context.run(held.__enter__)
    held.__exit__(None, None, None)
    assert VARIABLE.get() == "outside"


# ---------------------------------------------------------------------- ours


@pytest.fixture
def pool():
    with SmartPool("model:1GiB", SmartPoolConfig(track=True)) as pool:
        yield pool


def scopes_of(pool):
    streams = StreamSet(CpuDriver(), 2)
    return {
        "tag": pool.tag("x"),
        "profile": pool.profile("x"),
        "step": pool.step("x"),
        "borrow": streams.borrow(),
        "open_target": open_target("smartpool", "model:1GiB"),
    }


@pytest.mark.parametrize("name", ["tag", "profile", "step", "borrow", "open_target"])
def test_ours_are_entered_again_and_by_async_with(pool, name):
    scope = scopes_of(pool)[name]
    assert isinstance(scope, Scope)

    async def enter():
        async with scope:
            await Pause()

    for _ in range(2):
        with scope:
            pass
        finish(enter())


def test_a_capture_is_a_scope_too():
    with SmartPool("cpu") as pool:
        driver = pool.managers[0].driver
        stream = driver.create_stream()
        scope = pool.capture(stream)
        for _ in range(2):
            with scope as held:
                driver.begin_capture(stream)
                pool.free(pool.malloc(1000, stream))
                driver.end_capture(stream)
            assert held.held_bytes
            held.close()


@pytest.mark.parametrize("function", USED_UP)
def test_a_tag_a_profile_and_a_step_span_every_kind_of_body(pool, function):
    class Asking(list):
        """Requests a block where the body writes its line."""

        def append(self, line):
            assert current_label().tag == "tagged"
            pool.free(pool.malloc(3 * MiB))

    decorated = pool.tag("tagged")(pool.profile("profiled")(pool.step("stepped")(function)))
    for _ in range(3):
        USED_UP[function](decorated(Asking()))
        assert current_label().tag is None
    now = pool.statistics.devices[0]
    assert now.tracked.tags["tagged"].total_bytes == 9 * MiB
    assert now.tracked.profiles["profiled"].memory_total == 9 * MiB
    assert (now.steps.recorded, now.steps.hits) == (1, 2)


def test_async_steps_span_the_block_and_do_not_nest(pool):
    async def train():
        for _ in range(3):
            async with pool.step():
                pointer = pool.malloc(MiB)
                await asyncio.sleep(0)
                pool.free(pointer)
                with pytest.raises(StepError):
                    await anext(pool.step()(asynchronous)([]))

    asyncio.run(train())
    assert pool.statistics.devices[0].steps.hits == 2


def test_every_context_manager_that_users_meet_is_a_scope():
    """Whoever writes another one decides: a scope, or one that only our own code enters, by ``with``."""
    ours = {
        "beside",  # a driver's: entered by the pool for one call
        "current",
        "settled",
        "holds",
        "writing",
        "held_if_free",
        "uncollected",
        "wanting_descriptors",
    }
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                if decorators & {"contextmanager", "asynccontextmanager", "contextlib.contextmanager"}:
                    assert node.name.startswith("_") or node.name in ours, f"{path}: {node.name}"
