"""The pools of several devices: whose a block is, and what is done on all of them, one after the other.

What of this is `SmartPool`'s own is described for its users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from os import PathLike
from typing import Any, Final, cast

from smartpool.config import SmartPoolConfig
from smartpool.driver import Driver, open_driver
from smartpool.driver.protocol import Stream, check_driver, looks_like_driver
from smartpool.errors import (
    ConfigurationError,
    DeviceNotFoundError,
    DoubleFreeError,
    DriverError,
    InvalidRequestError,
    MemoryCorruptionError,
    SmartPoolError,
)
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.scopes import holds, scoped
from smartpool.sharing.endings import sweep
from smartpool.sleep.sleeping import Keep, SleepOutcome
from smartpool.telemetry.hooks import Hooks
from smartpool.telemetry.memory_map import MemoryMap
from smartpool.telemetry.tracked import ProfileRecord
from smartpool.telemetry.tracking import Scope
from smartpool.telemetry.watched import Telemetry
from smartpool.units import format_size
from smartpool.values import as_integer, encodable, shown

__all__ = ["PoolSet", "Profile", "checked_devices", "not_added"]

_NEAR_BITS: Final = 21  # a device often has all addresses that share the rest: it is asked first
_MOST_NEAR: Final = 1 << 16
_path: Final[ContextVar[tuple[str, ...]]] = ContextVar("smartpool.scopes", default=())


class PoolSet:
    """Pools under one configuration, one a device.

    Parameters
    ----------
    devices
        A device name, a driver, or a sequence of these: all are opened, or none.
    config
        How the pools behave.

    Attributes
    ----------
    managers
        The pools of the devices, in order.
    hooks
        What is called when something happens to the memory of any of them.
    closed
        Whether requests are refused; who closes the pools sets it.
    """

    def __init__(self, devices: object, config: SmartPoolConfig) -> None:
        self.config = config
        self.managers = managers = _open_managers(checked_devices(devices), config)
        self.first = managers[0]
        self.closed = False
        self.hooks = Hooks([manager.telemetry for manager in managers])
        for manager in managers:
            manager.telemetry.use_hooks(self.hooks)
        self._near: dict[int, AdvancedMemoryPoolManager] = {}
        self._live = self.first.quick_path[1]

    def __repr__(self) -> str:
        devices = ", ".join(manager.driver.name for manager in self.managers)
        if any(manager.disowned for manager in self.managers):
            return f"<SmartPool on {devices}: the parent process's, not this one's>"
        if self.closed:
            return f"<SmartPool on {devices}: closed>"
        live = sum(manager.live_bytes for manager in self.managers)
        reserved = sum(manager.reserved_bytes for manager in self.managers)
        return f"<SmartPool on {devices}: {format_size(live)} live, {format_size(reserved)} reserved>"

    # ------------------------------------------------------------------ one of them

    def number_of(self, device_id: object) -> int:
        """Return the number of one of the devices as a plain integer; `DeviceNotFoundError` if it is none."""
        number = as_integer(device_id)
        if number is None or not 0 <= number < len(self.managers):
            raise DeviceNotFoundError(
                f"device_id: expected an integer from 0 to {len(self.managers) - 1}, a device of this pool, "
                f"got {shown(device_id)}; name the device when the pool is made"
            )
        return number

    def of(self, device_id: object) -> AdvancedMemoryPoolManager:
        """Return the pool of the device of that number."""
        return self.managers[self.number_of(device_id)]

    def roomiest(self) -> AdvancedMemoryPoolManager:
        """Return the pool with most available memory."""
        if len(self.managers) == 1:
            return self.first
        return max(self.managers, key=lambda manager: manager.available_bytes)

    def free(self, pointer: int, stream: Stream = None) -> None:
        """Free a block on whichever device it is: `AdvancedMemoryPoolManager.free`. O(1)."""
        if pointer.__class__ is int:
            if pointer in self._live:
                self.first.free(pointer, stream)
                return
            manager = self._near.get(pointer >> _NEAR_BITS)
            if manager is not None and manager.owns(pointer):
                manager.free(pointer, stream)
                return
        self._owner_of(pointer).free(pointer, stream)

    def _owner_of(self, pointer: int) -> AdvancedMemoryPoolManager:
        """Return the pool that has the block at `pointer`, and remember it for the addresses around it."""
        number = as_integer(pointer)
        if number is None:
            return self.first  # which says what is wrong
        for manager in self.managers:
            if manager.owns(number):
                if len(self._near) >= _MOST_NEAR:
                    self._near.clear()
                self._near[number >> _NEAR_BITS] = manager
                return manager
        freed = (one for one in self.managers if isinstance(one.bad_pointer(number), DoubleFreeError))
        return next(freed, self.first)

    def memory_map(self, device_id: int = 0) -> MemoryMap:
        """Return what every byte that the pool holds on a device is, by address.

        Requests go on meanwhile: only dictionaries are copied under the pool's lock. O(n log n).

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     held = pool.malloc(5000)
        ...     pool.memory_map().blocks.requested_bytes
        [5000]
        """
        return self.of(device_id).memory_map()

    # ------------------------------------------------------------------ all of them

    def require_ours(self) -> None:
        """Raise `PoolClosedError` in a forked child, where the pools are the parent's."""
        for manager in self.managers:
            if manager.disowned:
                raise manager.slow_path.closed_error()  # it says of which process it is

    def require_open(self) -> None:
        """Raise `PoolClosedError` when the pools are closed, or not this process's."""
        self.require_ours()
        if self.closed:
            raise self.first.slow_path.closed_error()

    @scoped
    def step(self, name: str = "step", *, wait_for_plan: bool = False) -> Iterator[None]:
        """Mark one repetition of something that repeats itself: a block, or each call of what it decorates.

        The first repetition is recorded and planned, on another thread unless it is small; later ones are
        served from the plan, by index: no search, no driver call, and no memory beyond what is held.
        Requests of the thread that entered take part, on each stream by a plan of its own, and those of
        threads that take turns with it. What does not match is counted and served as always.

        Parameters
        ----------
        name
            Steps of different kinds, such as training and evaluation, have plans of their own.
        wait_for_plan
            Wait for the plan of an earlier repetition if the planner is still at work.

        Raises
        ------
        StepError
            When a step is under way already.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     for _ in range(3):
        ...         with pool.step(wait_for_plan=True):
        ...             pool.free(pool.malloc(1000))
        ...     pool.statistics.devices[0].steps.hits
        2
        """
        if not isinstance(name, str):
            raise InvalidRequestError(
                f"name: expected the name of a kind of step, such as 'training', got {name!r}; "
                "steps of one name share a plan"
            )
        with ExitStack() as ended:
            for manager in self.managers:
                manager.begin_step(name, wait_for_plan=wait_for_plan)
                ended.callback(manager.end_step)
            yield

    @scoped
    def profile(self, name: str) -> Iterator[Profile]:
        """Keep statistics of what happens in a block, or in a function as a decorator.

        Scopes nest: one inside of another is named ``outer/inner``. Requests of all threads count.
        Tracking begins with the first scope. `statistics` sums up over all the times that a scope was
        entered; what is returned tells of this time.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     with pool.profile("forward") as scope:
        ...         pool.free(pool.malloc(3000))
        ...     scope.record().memory_peak
        3000
        """
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(f"name: expected the name of a scope, got {name!r}")
        self.require_open()
        path = (*_path.get(), encodable(name))
        entered: list[tuple[Telemetry, Scope]] = []
        with holds(_path, path), ExitStack() as left:
            for manager in self.managers:
                entered.append((manager.telemetry, manager.telemetry.enter_scope("/".join(path))))
                left.callback(manager.telemetry.leave_scope, entered[-1][1])
            yield Profile(self, entered)

    def trim(self, keep_bytes: int = 0, *, wait: bool = False, captures: bool = False) -> int:
        """Give idle memory back until each device holds at most `keep_bytes`; return the bytes freed.

        With `wait`, what the device may still touch is waited for. With `captures`, what is held for graphs
        that were captured outside of `capture` goes, too: they must not be launched any more.
        """
        sweep()
        self.require_open()
        return sum(manager.trim(keep_bytes, wait=wait, captures=captures) for manager in self.managers)

    def sleep(
        self,
        tags: str | Iterable[str] | None = None,
        *,
        keep: Keep = "host",
        directory: str | PathLike[str] | None = None,
        wait: bool = True,
    ) -> tuple[SleepOutcome, ...]:
        """Give physical memory back to the devices while every address stays; see ``docs/howto/sleeping.md``.

        Buffers, tensors and captured graphs are valid again after `wake`; until then nothing may use them.
        Where we can see it, whoever does is told so by an `AsleepError`. They may be freed.

        Parameters
        ----------
        tags
            Tags that `SmartPoolConfig.sleep_tags` names, one or several; the rest stays awake. None for all.
        keep
            Where the contents stay: on the ``"host"``, in pinned memory that is kept for the next time; on
            ``"disk"``, in a file that is checked on the way back; or ``"nothing"`` of them is kept.
        directory
            Where the file is made, with ``keep="disk"``; not in memory.
        wait
            Wait for what the device is doing. Without it, `AsleepError` if it is at work.

        Raises
        ------
        AsleepError
            When the contents could not be kept. All stays awake.
        DriverError
            When the device did not take its memory back. It is asleep; call it again for the rest.
        CaptureError, StepError
            Beside a capture or a planned step.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("cpu", sleep_tags=["weights"]) as pool:
        ...     with pool.tag("weights"):
        ...         weights = pool.empty(3, "uint8")
        ...     weights.memoryview()[:] = b"abc"
        ...     outcome = pool.sleep("weights")
        ...     outcome = pool.wake("weights")
        ...     bytes(weights.memoryview())
        b'abc'
        """
        self.require_open()
        names = tags if tags is None or isinstance(tags, str) else tuple(tags)
        return tuple(
            manager.sleeping.sleep(names, keep=keep, directory=directory, wait=wait)
            for manager in self.managers
        )

    def wake(self, tags: str | Iterable[str] | None = None) -> tuple[SleepOutcome, ...]:
        """Get physical memory for what sleeps, at the same addresses, and bring the contents back.

        One outcome a device. With several devices, those before one that fails are awake.

        Raises
        ------
        OutOfMemoryError
            When the device or the limit does not hold it; it tells who holds what. All stays asleep.
        DriverError, AsleepError
            When a driver call failed, or the disk gave something else back. All stays asleep.
        """
        self.require_open()
        names = tags if tags is None or isinstance(tags, str) else tuple(tags)
        return tuple(manager.sleeping.wake(names) for manager in self.managers)

    def close(self) -> None:
        """Close all pools; those of all other devices, too, when one fails, whose error is raised then."""
        failures: list[SmartPoolError] = []
        for manager in self.managers:  # each of them, and again if one failed before
            try:
                manager.close()
            except (DriverError, MemoryCorruptionError) as error:
                failures.append(error)
        if failures:
            first, *others = failures
            for other in others:
                first.add_note(f"and: {other}")
            raise first

    def check(self) -> None:
        """Prove every invariant of every device; `InvariantError` when one is broken."""
        for manager in self.managers:
            manager.check()

    def start_tracking(self, *, stack_depth: int = 0) -> None:
        """Keep exact statistics of every request from now on: by tier, stream, tag and scope.

        Parameters
        ----------
        stack_depth
            Frames of the Python stack that are recorded with each block; 0 for none.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     pool.start_tracking()
        ...     with pool.tag("weights"):
        ...         weights = pool.allocate(3000)
        ...     pool.statistics.devices[0].tracked.tags["weights"].current_bytes
        3000
        """
        self.require_open()
        depth = as_integer(stack_depth)
        if depth is None or depth < 0:
            raise InvalidRequestError(f"stack_depth: expected a number of frames, got {shown(stack_depth)}")
        for manager in self.managers:
            manager.telemetry.start_tracking(stack_depth=depth)

    def stop_tracking(self) -> None:
        """Keep statistics of requests no more, and forget them."""
        for manager in self.managers:
            manager.telemetry.stop_tracking()

    def reset_peaks(self) -> None:
        """Let tracked peaks begin anew, at what is live now."""
        for manager in self.managers:
            tracker = manager.telemetry.tracker  # another thread may end it
            if tracker is not None:
                tracker.reset_peaks()

    # ------------------------------------------------------------------ callbacks

    def add_out_of_memory_callback(self, callback: Callable[[int], bool]) -> None:
        """Ask `callback(nbytes)` before a request of `nbytes` fails for lack of memory.

        It returns True when it freed something, and the request is tried again; False to let it
        fail. It may free and trim, and must not allocate from this pool. A True after which no less
        is live than before counts as False the second time. Before the request fails garbage is collected,
        and callbacks are asked once more.

        It is called under the pool's lock, on the thread whose request is short of memory: it must not
        wait for a lock that another thread may hold while that one allocates from this pool.

        What it raises, the request raises, in place of the `OutOfMemoryError`, which is then its cause
        (`__cause__`), with the story, unless it has a cause of its own or is a `DriverError`.
        """
        if not callable(callback):
            raise InvalidRequestError(f"callback: expected a function of the bytes wanted, got {callback!r}")
        for manager in self.managers:
            manager.out_of_memory_callbacks.append(callback)

    def remove_out_of_memory_callback(self, callback: Callable[[int], bool]) -> None:
        """Ask `callback` no more; `InvalidRequestError`, which is a `ValueError`, when it was not added."""
        try:
            for manager in self.managers:
                manager.out_of_memory_callbacks.remove(callback)
        except ValueError:
            raise not_added("add_out_of_memory_callback", callback) from None


class Profile:
    """One stay in a scope; see `SmartPool.profile`."""

    __slots__ = ("_entered", "_pools")

    def __init__(self, pools: PoolSet, entered: list[tuple[Telemetry, Scope]]) -> None:
        self._pools = pools
        self._entered = entered

    def record(self, device_id: int = 0) -> ProfileRecord:
        """Return what happened on a device, up to the end of the scope or to now."""
        telemetry, scope = self._entered[self._pools.number_of(device_id)]
        telemetry.settle()
        return scope.record


def not_added(method: str, callback: object) -> InvalidRequestError:
    """Return the error about a callback that is to be taken away and was not added."""
    return InvalidRequestError(f"callback: expected one that {method} was given, got {callback!r}")


def checked_devices(given: object) -> tuple[str | Driver, ...]:
    """Return the names and drivers that were given, one or a sequence."""
    devices = tuple(given) if isinstance(given, list | tuple) else (given,)
    drivers = [one for one in devices if not isinstance(one, str)]
    if not devices or not all(map(looks_like_driver, drivers)):
        raise DeviceNotFoundError(
            "expected a device name, a smartpool.driver.Driver, a sequence of these or a GPUMemoryOptimizer, "
            f"got {given!r}; use 'cuda:0', 'cpu' or 'model:80GiB'"
        )
    for number, driver in enumerate(drivers):
        check_driver(driver)
        if any(driver is other for other in drivers[:number]):
            raise ConfigurationError(
                "driver", f"expected a driver of its own for each device, got {driver!r} again"
            )
    return cast("tuple[str | Driver, ...]", devices)


def _open_managers(
    devices: tuple[str | Driver, ...], config: SmartPoolConfig
) -> tuple[AdvancedMemoryPoolManager, ...]:
    """Open every device, or none."""
    managers: list[AdvancedMemoryPoolManager] = []
    try:
        options = config.debug_options()
        opened = open_driver if options is None else partial(open_driver, checked=True)
        for device in devices:
            driver = opened(device) if isinstance(device, str) else device
            managers.append(AdvancedMemoryPoolManager(driver, config))
        if options is not None:
            from smartpool.debug.debugging import DebuggingManager  # noqa: PLC0415 - only for those who debug

            # In front of each pool, with the same methods: see there.
            return tuple(cast("Any", DebuggingManager(manager, options)) for manager in managers)
    except BaseException:
        for manager in managers:
            manager.close()
        raise
    return tuple(managers)
