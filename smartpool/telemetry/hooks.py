"""Hooks: functions of the program that are called when something happens to a pool's memory.

A hook may look, count, log and raise an alarm. It is called in the middle of a request, often under
the pool's lock, so it must be quick and must not wait for another thread that uses the pool; a request
that it makes itself is not reported to hooks, and is refused (`ReentrantCallError`) where the pool is
in the middle of a search.

A hook that raises harms nobody: the error is logged with its traceback and counted, and the request
goes on. Only what is no `Exception` (Ctrl-C, `SystemExit`) passes through; then a request gives its
block back before it fails, and a free is done all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from weakref import WeakMethod, ref

from smartpool.errors import InvalidRequestError
from smartpool.log import LOGGER
from smartpool.telemetry.labels import current_label

if TYPE_CHECKING:
    from smartpool.pool.bins import Bin
    from smartpool.telemetry.out_of_memory import OutOfMemoryReport

__all__ = [
    "AllocateEvent",
    "FreeEvent",
    "HookList",
    "Hookable",
    "Hooks",
    "MapEvent",
    "RequestHooks",
    "notify_map",
]


@dataclass(frozen=True, slots=True)
class AllocateEvent:
    """A block was handed out: where, `nbytes` as requested, for which stream, and under which tag."""

    device: str
    pointer: int
    nbytes: int
    stream: int
    tag: str | None


@dataclass(frozen=True, slots=True)
class FreeEvent:
    """A block was given back; `stream` is that of its request."""

    device: str
    pointer: int
    nbytes: int
    stream: int


@dataclass(frozen=True, slots=True)
class MapEvent:
    """Memory was mapped at `address`, or given back; `reserved_bytes` is what the pool then holds."""

    device: str
    address: int
    nbytes: int
    reserved_bytes: int


Event = TypeVar("Event")


class HookList(Generic[Event]):
    """The hooks of one kind.

    Examples
    --------
    >>> seen = HookList[int]("seen")
    >>> numbers = []
    >>> remove = seen.add(numbers.append)
    >>> seen(5); remove(); seen(6); numbers
    [5]
    """

    __slots__ = ("_failures", "_hooks", "_name", "_on_change")

    def __init__(self, name: str, on_change: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._hooks: tuple[Callable[[Event], Any], ...] = ()
        self._on_change = on_change
        self._failures = 0

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def __call__(self, event: Event) -> None:
        """Call every hook. What one raises is logged and counted."""
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:  # noqa: BLE001 - logged, with its traceback
                self._failures += 1
                LOGGER.exception("a hook failed: %s(%r)", self._name, hook)

    @property
    def failures(self) -> int:
        """How often a hook raised."""
        return self._failures

    def add(self, hook: Callable[[Event], Any]) -> Callable[[], None]:
        """Call `hook(event)` from now on; return the function that ends it."""
        if not callable(hook):
            raise InvalidRequestError(f"hook: expected a function of the event, got {hook!r}")
        self._hooks = (*self._hooks, hook)
        self._on_change()

        def remove() -> None:
            left = list(self._hooks)
            if hook in left:
                left.remove(hook)
            self._hooks = tuple(left)
            self._on_change()

        return remove


class Hooks:
    """What can be hooked on a pool; each returns the function that takes the hook away again.

    While there is no hook for requests and frees they pay nothing; with one, about half a microsecond
    and what the hook takes.

    Parameters
    ----------
    hookables
        The devices. They are not kept alive.

    Examples
    --------
    >>> import smartpool
    >>> with smartpool.SmartPool("model:1GiB") as pool:
    ...     sizes = []
    ...     remove = pool.hooks.on_allocate(lambda event: sizes.append(event.nbytes))
    ...     pool.free(pool.malloc(100))
    ...     remove()
    ...     pool.free(pool.malloc(200))
    ...     sizes
    [100]
    """

    __slots__ = ("__weakref__", "_devices", "allocate", "free", "map", "out_of_memory", "unmap")

    def __init__(self, hookables: Iterable[Hookable]) -> None:
        changed = WeakMethod(self._changed)  # a pool that nobody holds is to go at once: no cycles
        self._devices = [ref(hookable) for hookable in hookables]
        self.allocate = HookList[AllocateEvent]("on_allocate", lambda: _call(changed))
        self.free = HookList[FreeEvent]("on_free", lambda: _call(changed))
        self.map = HookList[MapEvent]("on_map")
        self.unmap = HookList[MapEvent]("on_unmap")
        self.out_of_memory: HookList[OutOfMemoryReport] = HookList("on_out_of_memory")

    def __repr__(self) -> str:
        return f"<Hooks: {self.failures} failures>"

    def _changed(self) -> None:
        for device in self._devices:
            hookable = device()
            if hookable is not None:
                hookable.hook_requests(self)

    def on_allocate(self, hook: Callable[[AllocateEvent], Any]) -> Callable[[], None]:
        """Call `hook` when a block was handed out."""
        return self.allocate.add(hook)

    def on_free(self, hook: Callable[[FreeEvent], Any]) -> Callable[[], None]:
        """Call `hook` when a block was given back."""
        return self.free.add(hook)

    def on_map(self, hook: Callable[[MapEvent], Any]) -> Callable[[], None]:
        """Call `hook` when the pool took physical memory from the device."""
        return self.map.add(hook)

    def on_unmap(self, hook: Callable[[MapEvent], Any]) -> Callable[[], None]:
        """Call `hook` when the pool gave physical memory back to the device."""
        return self.unmap.add(hook)

    def on_out_of_memory(self, hook: Callable[[OutOfMemoryReport], Any]) -> Callable[[], None]:
        """Call `hook` when a request is about to fail for lack of memory, after all callbacks.

        To make room instead, use `SmartPool.add_out_of_memory_callback`.
        """
        return self.out_of_memory.add(hook)

    @property
    def failures(self) -> int:
        """How often a hook raised."""
        lists: tuple[HookList[Any], ...] = (self.allocate, self.free, self.map, self.unmap)
        return sum(hooks.failures for hooks in (*lists, self.out_of_memory))


class Hookable(Protocol):
    """A device whose requests can be hooked."""

    def hook_requests(self, hooks: Hooks) -> None:
        """Tell `hooks` of requests and frees while it has anybody to tell."""


class RequestHooks:
    """Tells the hooks of one device's requests and frees; see `Journal.hooks`.

    Parameters
    ----------
    device
        Its name, for the events.
    hooks
        Whom to tell.
    """

    __slots__ = ("_device", "_hooks")

    def __init__(self, device: str, hooks: Hooks) -> None:
        self._device = device
        self._hooks = hooks

    def tells(self, hooks: Hooks) -> bool:
        """Return whether it is `hooks` that are told."""
        return self._hooks is hooks

    def allocated(self, pointer: int, bin_: Bin) -> None:
        """Tell of a request, unless a hook of this thread made it."""
        if self._hooks.allocate and not getattr(_within, "hook", False):
            event = AllocateEvent(self._device, pointer, bin_.nbytes, bin_.stream, current_label().tag)
            self._tell(self._hooks.allocate, event)

    def freed(self, pointer: int, bin_: Bin) -> None:
        """Tell of a free, unless a hook of this thread made it."""
        if self._hooks.free and not getattr(_within, "hook", False):
            self._tell(self._hooks.free, FreeEvent(self._device, pointer, bin_.nbytes, bin_.stream))

    def _tell(self, hooks: HookList[Any], event: object) -> None:
        _within.hook = True
        try:
            hooks(event)
        finally:
            _within.hook = False


_within: Final = threading.local()


def _call(method: WeakMethod[Callable[[], None]]) -> None:
    bound = method()
    if bound is not None:
        bound()


def notify_map(device: str, hooks: list[Hooks], what: str, *change: int) -> None:
    """Log that memory was mapped (``"map"``) or given back, and tell the hooks. Raises no `Exception`.

    `change` is the address, the bytes, and what the pool then holds.
    """
    address, nbytes, reserved = change
    LOGGER.debug("%s %s: %d bytes at %#x, %d reserved", device, what, nbytes, address, reserved)
    for each in hooks:
        told = each.map if what == "map" else each.unmap
        if told:
            told(MapEvent(device, address, nbytes, reserved))
