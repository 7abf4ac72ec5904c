"""An allocator as the kit calls it, whatever its own methods are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from smartpool.errors import ConfigurationError
from smartpool.testing.contract import Contract

__all__ = ["Subject"]

_PAIRS: Final = (("malloc", "free"), ("allocate", "deallocate"), ("allocate", "free"))
_SIZE_NAMES: Final = frozenset({"size", "nbytes", "bytes", "n_bytes", "num_bytes", "n", "length"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A fresh allocator, and how to call it.

    Parameters
    ----------
    allocator
        What the factory made.
    allocate, release
        Its two callables.
    names
        How a program writes them: ``("pool.malloc", "pool.free")``.
    sized_free
        Whether a free is told the size.
    handles, streams
        The streams in order, as the driver knows them and as the allocator takes them; empty where none is
        ever named.
    free_takes_stream
        Whether a free can name a stream.
    """

    allocator: Any
    allocate: Callable[..., Any]
    release: Callable[..., Any]
    names: tuple[str, str]
    sized_free: bool
    handles: Sequence[Any]
    streams: Sequence[object]
    free_takes_stream: bool

    @classmethod
    def make(cls, contract: Contract, driver: object = None) -> Subject:
        r"""Make a fresh allocator by the contract's factory.

        Raises
        ------
        ConfigurationError
            When what the factory made has no pair of methods that the kit knows.

        Examples
        --------
        >>> subject = Subject.make(Contract(factory=lambda: (bytearray, bytearray.clear)))
        >>> subject.names, subject.malloc(5)
        (('malloc', 'free'), bytearray(b'\x00\x00\x00\x00\x00'))
        """
        allocator = contract.factory() if driver is None else contract.factory(driver)
        if isinstance(allocator, tuple):
            if len(allocator) != 2 or not all(map(callable, allocator)):
                raise ConfigurationError("factory", f"expected a pair (malloc, free), got {allocator!r}")
            allocate, release = allocator
            names = ("malloc", "free")
        else:
            pair = next((pair for pair in _PAIRS if all(hasattr(allocator, name) for name in pair)), None)
            if pair is None:
                raise ConfigurationError(
                    "factory",
                    "expected an allocator with malloc and free, or allocate and deallocate, or a pair of "
                    f"callables, got {allocator!r}; return (malloc, free) from the factory",
                )
            allocate, release = (getattr(allocator, name) for name in pair)
            names = (f"pool.{pair[0]}", f"pool.{pair[1]}")
        handles = _make_streams(contract.streams, allocator, driver)
        wrap = contract.wrap_stream
        return cls(
            allocator=allocator,
            allocate=allocate,
            release=release,
            names=names,
            sized_free=_wants_size(release, names[1]),
            handles=handles,
            streams=handles if wrap is None else tuple(wrap(handle) for handle in handles),
            free_takes_stream=bool(handles) and _wants_stream(release),
        )

    def malloc(self, nbytes: Any, stream: int | None = None) -> Any:
        """Ask for `nbytes` bytes, on the stream of that number."""
        return self.allocate(nbytes) if stream is None else self.allocate(nbytes, stream=self.streams[stream])

    def free(self, block: Any, nbytes: int, stream: int | None = None) -> None:
        """Free what a request returned."""
        arguments = (block, nbytes) if self.sized_free else (block,)
        if stream is None or not self.free_takes_stream:
            self.release(*arguments)
        else:
            self.release(*arguments, stream=self.streams[stream])


def _make_streams(streams: Any, allocator: object, driver: Any) -> tuple[Any, ...]:
    if isinstance(streams, int):
        return (driver.default_stream, *(driver.create_stream() for _ in range(streams)))
    return tuple(streams(allocator) if callable(streams) else streams or ())


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # compiled, and says nothing of itself
        return None


def _wants_size(release: Callable[..., Any], name: str) -> bool:
    known = _parameters(release)
    if known is None:
        return name.endswith("deallocate")  # as in C++ and everything that follows it
    positional = [
        each for each in known.values() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) < 2 or positional[1].name == "stream":
        return False
    return positional[1].default is inspect.Parameter.empty or positional[1].name in _SIZE_NAMES


def _wants_stream(release: Callable[..., Any]) -> bool:
    known = _parameters(release)
    return known is None or any(
        name == "stream" or each.kind is each.VAR_KEYWORD for name, each in known.items()
    )
