"""Scopes: entered by ``with`` and ``async with``, again and again, and decorators of functions of every kind.

Problem: what `contextlib.contextmanager` makes can be entered once; and as a decorator of a coroutine or
generator function it is left before the body begins, without a word.
Method: a `Scope` makes a new context manager each time it is entered, and a function that it decorates has
one for each call, which spans the body. A generator has a copy of its caller's context to itself: what a
scope sets in there, such as a tag, does not reach the caller while the generator waits between two values.
A scope that is entered is refused to others until it is left: it could not know whose exit an exit is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar

from smartpool.errors import ScopeError

__all__ = ["Scope", "holds", "scoped"]

P = ParamSpec("P")
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


def scoped(function: Callable[P, Iterator[T]]) -> Callable[P, Scope[T]]:
    """Make what `contextmanager` makes, as a `Scope`.

    >>> @scoped
    ... def bold():
    ...     print("<b>", end="")
    ...     yield
    ...     print("</b>")
    >>> @bold()
    ... def letters(text):
    ...     for letter in text:
    ...         yield letter
    >>> print(*letters("abc"))
    <b></b>
    a b c
    """
    managed = contextmanager(function)

    @wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Scope[T]:
        return Scope(function.__name__, partial(managed, *args, **kwargs))

    return make


@contextmanager
def holds(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Let a context variable have a value in the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        with suppress(ValueError):  # left in another context, as by a loop that ends: not set there
            variable.reset(token)


class Scope(Generic[T]):
    """One call of a function that `scoped` decorates.

    Parameters
    ----------
    name
        Of the function, for messages.
    make
        Returns a new context manager.
    """

    __slots__ = ("_entered", "_make", "_name")

    def __init__(self, name: str, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._name = name
        self._make = make
        self._entered: dict[str, AbstractContextManager[T]] = {}  # one at most, under its name: in one step

    def __repr__(self) -> str:
        return f"<Scope of {self._name}: {'entered' if self._entered else 'to be entered'}>"

    def __enter__(self) -> T:
        entered = self._make()
        if self._entered.setdefault(self._name, entered) is not entered:
            raise ScopeError(
                f"expected a scope that nobody is in, this one of {self._name}() is entered already; "
                "call it again for each use: every call makes a scope of its own"
            )
        try:
            return entered.__enter__()
        except BaseException:
            del self._entered[self._name]
            raise

    def __exit__(self, *exception: object) -> bool | None:
        entered = self._entered.pop(self._name, None)
        if entered is None:
            raise ScopeError(f"expected a scope that was entered, this one of {self._name}() was not")
        return entered.__exit__(*exception)  # type: ignore[arg-type]

    async def __aenter__(self) -> T:
        return self.__enter__()

    async def __aexit__(self, *exception: object) -> bool | None:
        return self.__exit__(*exception)

    def __call__(self, function: Function) -> Function:
        """Return a function whose every call is in a scope of its own, from its first line to its last."""
        if not callable(function) or isinstance(function, type | staticmethod | classmethod):
            raise ScopeError(
                f"expected a function to be decorated by {self._name}(), got {function!r}; "
                "put the scope below @staticmethod and @classmethod, and on methods rather than classes"
            )
        spanning: Function = _spanning(self._make, function)
        return spanning


def _spanning(make: Callable[[], AbstractContextManager[Any]], function: Callable[..., Any]) -> Any:
    def is_a(kind: Callable[[object], bool]) -> bool:
        return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004 - of an instance

    @wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with make():
            return function(*args, **kwargs)

    @wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        with make():
            return await function(*args, **kwargs)

    @wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Any:
        with _Apart(make()) as context:
            return (yield from _InContext(function(*args, **kwargs), context))

    @wraps(function)
    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        with _Apart(make()) as context:
            inner = function(*args, **kwargs)
            step = inner.asend(None)
            while True:
                try:
                    value = await _InContext(step, context)
                except StopAsyncIteration:
                    return
                try:
                    step = inner.asend((yield value))
                except GeneratorExit:
                    await _InContext(inner.aclose(), context)
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the caller, for the body
                    step = inner.athrow(error)

    if is_a(inspect.isasyncgenfunction):
        return asynchronous
    if is_a(inspect.iscoroutinefunction):
        return coroutine
    return generator if is_a(inspect.isgeneratorfunction) else plain


class _Apart:
    """A context manager that is entered and left in a copy of the caller's context, which it gives."""

    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self._inner = inner
        self._context = copy_context()

    def __enter__(self) -> Context:
        self._context.run(self._inner.__enter__)
        return self._context

    def __exit__(self, *exception: object) -> bool | None:
        return self._context.run(self._inner.__exit__, *exception)  # type: ignore[arg-type]


class _InContext(Generator[Any, Any, Any]):
    """A generator, or a step of an asynchronous one, that runs in a context whoever resumes it."""

    def __init__(self, inner: Any, context: Context) -> None:
        self._inner = inner
        self._context = context

    def send(self, value: Any) -> Any:
        """Resume it with a value."""
        return self._context.run(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception where it waits."""
        return self._context.run(self._inner.throw, *error)

    def close(self) -> None:
        """End it."""
        self._context.run(self._inner.close)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self
