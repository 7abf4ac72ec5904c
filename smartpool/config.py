"""The pool's configuration: one frozen value, validated once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from os import PathLike
from typing import Final, Literal, TypedDict

from smartpool.debug_options import DebugOptions
from smartpool.errors import ConfigurationError, InvalidSizeError
from smartpool.prices import Prices
from smartpool.units import parse_size
from smartpool.values import as_integer, as_number, shown

__all__ = ["POLICIES", "Policy", "Settings", "SmartPoolConfig", "unknown_setting"]

Policy = Literal["balanced", "tight", "fast"]

POLICIES: Final[dict[Policy, float]] = {"tight": 0.0, "balanced": 0.5, "fast": 1.0}
"""The named policies, and their places on the axis from least memory to least driver time.

A name is a line here (and in `Policy`, for type checkers); commands, completion and the heap follow.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmartPoolConfig:
    """How a pool behaves.

    Parameters
    ----------
    enable_interval_coloring
        Count the free ranges between live blocks in the live metric, as its part `interval_graph`. Off, that
        part is 0. It changes the metric alone: where blocks are placed does not depend on it.
    enable_advanced_pooling
        Keep freed memory for reuse in tiers. Off, every request goes to the driver: for debugging.
    fragmentation_threshold
        Weighted fragmentation, in [0, 1], above which the optimizer acts.
    optimization_interval
        Seconds between two passes of the background optimizer.
    idle_age
        Seconds for which memory idles before the optimizer gives it back; None to wait for pressure or
        fragmentation. By the measured prices, getting all memory of an H200 back takes 0.1 s: 0.2 %
        of the default.
    target_fragmentation_reduction
        Reduction against the caching baseline, in [0, 1], that `statistics.target_achieved` asks for.
    enable_predictive_allocation
        Plan the steps that `SmartPool.step` marks, and serve them from their plans; and, beside the
        background optimizer, map memory before it is asked for where that can be foreseen
        (`expected_bytes`). Off, a step is served like everything else, and nothing is mapped ahead.
    enable_auto_defragmentation
        Run the background optimizer, which joins free ranges and gives back what idles. It moves no
        block and copies no byte.
    memory_pressure_threshold
        Share of the device (or of `max_bytes`) in use, in (0, 1], above which idle memory is given
        back without waiting for the interval.
    policy
        ``"balanced"``, ``"tight"`` (least memory) or ``"fast"`` (least driver time); or a number on the
        axis on which they lie, from 0 (tight) by way of 0.5 (balanced) to 1 (fast).
    prices
        What the driver's calls cost, by which the policy decides; None for the model's own table, and
        on `cuda` for a measurement of less than a millisecond when the pool first grows.
    expected_bytes
        What the program is expected to need at most on a device, as an integer or a size such as
        ``"24GiB"``, from an earlier run: it is mapped ahead of demand, on a thread of its own. None when
        unknown; then only what a pool needed before is mapped ahead, after it was given back.
    profile
        A file that `SmartPool.save_profile` of an earlier run wrote, or will write: what it says is mapped
        ahead, on a thread of its own. None for none; a file that is not there yet says nothing.
    max_bytes
        Hard cap on reserved bytes a device: an integer, a size such as ``"24GiB"``, a share of the
        device as a float in (0, 1), or None for no cap but the device.
    record
        Record every request and free from the start, for traces and the measured reduction.
    track
        Keep exact statistics from the start: `SmartPool.start_tracking`.
    stack_depth
        Frames of the Python stack that are recorded with each block; more than 0 tracks, too.
    out_of_memory_dump
        Folder for a file of each request that fails for lack of memory; None for what the environment
        variable ``SMARTPOOL_OUT_OF_MEMORY_DUMP`` says.
    debug
        Look for overruns, uses after free and leaks: True, or `DebugOptions`; False never to. None for
        what the environment variable ``SMARTPOOL_DEBUG`` says.
    shareable
        Make memory that other processes can open: `SmartPool.export`. Linux only.
    sleep_tags
        Tags (`SmartPool.tag`) whose blocks lie in chunks of their own, so that `SmartPool.sleep` can give
        back the memory of one and leave the others awake. Requests then look at their tag, which takes some
        microseconds; without any, nothing does.

    Raises
    ------
    ConfigurationError
        When a field is wrong; its `field` attribute and the message name it.

    Examples
    --------
    >>> SmartPoolConfig(fragmentation_threshold=1.5)
    Traceback (most recent call last):
    smartpool.errors.ConfigurationError: fragmentation_threshold: expected a number in [0, 1], got 1.5
    """

    enable_interval_coloring: bool = True
    enable_advanced_pooling: bool = True
    fragmentation_threshold: float = 0.3
    optimization_interval: float = 30.0
    idle_age: float | None = 60.0
    target_fragmentation_reduction: float = 0.133
    enable_predictive_allocation: bool = True
    enable_auto_defragmentation: bool = True
    memory_pressure_threshold: float = 0.85
    policy: Policy | float = "balanced"
    prices: Prices | None = None
    expected_bytes: int | str | None = None
    profile: str | PathLike[str] | None = None
    max_bytes: int | float | str | None = None
    record: bool = False
    track: bool = False
    stack_depth: int = 0
    out_of_memory_dump: str | None = None
    debug: bool | DebugOptions | None = None
    shareable: bool = False
    sleep_tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ConfigurationError(field.name, f"expected True or False, got {value!r}")
        self._keep_number("fragmentation_threshold", high=1.0)
        self._keep_number("target_fragmentation_reduction", high=1.0)
        self._keep_number("memory_pressure_threshold", high=1.0, above=True)
        self._keep_number("optimization_interval", above=True)
        if self.idle_age is not None:
            self._keep_number("idle_age", above=True)
        self._keep_integer("stack_depth", "a number of frames")
        self._check_policy()
        if self.prices is not None and not isinstance(self.prices, Prices):
            raise ConfigurationError("prices", f"expected Prices or None, got {self.prices!r}")
        if self.expected_bytes is not None:
            self._keep_size("expected_bytes")
        if as_number(self.max_bytes) is not None and as_integer(self.max_bytes) is None:
            self._keep_number("max_bytes", high=1.0, above=True)
        elif self.max_bytes is not None:
            self._keep_size("max_bytes")
        self._check_profile()
        tags: object = self.sleep_tags
        if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
            raise ConfigurationError(
                "sleep_tags", f"expected names of tags, got {tags!r}; put one in a tuple"
            )
        kept = tuple(tags)
        for tag in kept:
            if not isinstance(tag, str) or not tag:
                raise ConfigurationError("sleep_tags", f"expected names of tags, got {tag!r}")
        if kept and not self.enable_advanced_pooling:
            raise ConfigurationError("sleep_tags", "expected none with enable_advanced_pooling=False")
        object.__setattr__(self, "sleep_tags", kept)
        folder = self.out_of_memory_dump
        if folder is not None and (not isinstance(folder, str) or "\0" in folder):
            raise ConfigurationError("out_of_memory_dump", f"expected a folder or None, got {folder!r}")
        if self.debug is not None and not isinstance(self.debug, bool | DebugOptions):
            raise ConfigurationError("debug", f"expected True, False or DebugOptions, got {self.debug!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> SmartPoolConfig:
        """Return the configuration that a mapping of field names gives; unknown names are an error."""
        return cls().changed(values)

    @classmethod
    def of(cls, config: SmartPoolConfig | Mapping[str, object] | None) -> SmartPoolConfig:
        """Return `config` if it is one, what a mapping of field names gives, or the defaults for None."""
        if isinstance(config, cls):
            return config
        if config is None or isinstance(config, Mapping):
            return cls.from_mapping(config or {})
        raise ConfigurationError(
            "config", f"expected a SmartPoolConfig, a mapping of its fields, or None, got {config!r}"
        )

    def changed(self, values: Mapping[str, object]) -> SmartPoolConfig:
        """Return this configuration with the fields that `values` names changed."""
        known = [field.name for field in fields(self)]
        for name in values:
            if name not in known:
                raise unknown_setting(name, known)
        return replace(self, **values)  # type: ignore[arg-type]

    def cap(self, device_bytes: int) -> int:
        """Return the hard cap in bytes on a device that holds `device_bytes`."""
        limit = self.max_bytes
        if limit is None:
            return device_bytes
        if isinstance(limit, float):
            return min(device_bytes, int(limit * device_bytes))
        return min(device_bytes, parse_size(limit))

    def debug_options(self) -> DebugOptions | None:
        """Return how the pool debugs; None when it does not."""
        if self.debug is None:
            return DebugOptions.from_environment()
        if isinstance(self.debug, bool):
            return DebugOptions() if self.debug else None
        return self.debug

    def _keep_number(self, name: str, *, high: float = math.inf, above: bool = False) -> None:
        """Keep a field as a plain `float` in [0, high], or in (0, high] with `above`."""
        given = getattr(self, name)
        value = as_number(given)
        if value is None or not 0 <= value <= high or value == math.inf or (above and value == 0):
            bracket = f"{'(' if above else '['}0, {high:g}{']' if high < math.inf else ')'}"
            raise ConfigurationError(name, f"expected a number in {bracket}, got {shown(given)}")
        object.__setattr__(self, name, value)

    def _keep_integer(self, name: str, wanted: str) -> None:
        """Keep a field as a plain `int` of at least 0."""
        given = getattr(self, name)
        value = as_integer(given)
        if value is None or value < 0:
            raise ConfigurationError(name, f"expected {wanted}, got {shown(given)}")
        object.__setattr__(self, name, value)

    def _keep_size(self, name: str) -> None:
        """Keep a size above 0: an integer as a plain `int`, a text as it is."""
        value = getattr(self, name)
        number = as_integer(value)
        try:
            nbytes = parse_size(value) if number is None else number
        except InvalidSizeError as error:
            raise ConfigurationError(name, str(error)) from None
        if nbytes <= 0 or isinstance(value, bool):
            raise ConfigurationError(name, f"expected a size above 0, got {shown(value)}")
        object.__setattr__(self, name, value if number is None else number)

    def _check_profile(self) -> None:
        if self.profile is None:
            return
        if not isinstance(self.profile, str | PathLike) or "\0" in str(self.profile):
            raise ConfigurationError("profile", f"expected a path or None, got {shown(self.profile)}")
        for name in ("enable_predictive_allocation", "enable_auto_defragmentation"):
            if not getattr(self, name):
                raise ConfigurationError(
                    "profile", f"expected None with {name}=False: nothing would map ahead"
                )

    def _check_policy(self) -> None:
        policy = self.policy
        if isinstance(policy, str) and policy in POLICIES:
            return
        place = as_number(policy)
        if place is None or not 0 <= place <= 1:
            names = ", ".join(repr(name) for name in POLICIES)
            raise ConfigurationError(
                "policy", f"expected one of {names}, or a number in [0, 1], got {shown(policy)}"
            )
        object.__setattr__(self, "policy", place)


class Settings(TypedDict, total=False):
    """The fields of `SmartPoolConfig` as keyword arguments, for type checkers; see there."""

    enable_interval_coloring: bool
    enable_advanced_pooling: bool
    fragmentation_threshold: float
    optimization_interval: float
    idle_age: float | None
    target_fragmentation_reduction: float
    enable_predictive_allocation: bool
    enable_auto_defragmentation: bool
    memory_pressure_threshold: float
    policy: Policy | float
    prices: Prices | None
    expected_bytes: int | str | None
    profile: str | PathLike[str] | None
    max_bytes: int | float | str | None
    record: bool
    track: bool
    stack_depth: int
    out_of_memory_dump: str | None
    debug: bool | DebugOptions | None
    shareable: bool
    sleep_tags: tuple[str, ...]


def unknown_setting(name: object, known: Iterable[str]) -> ConfigurationError:
    """Return the error for a name that is none of the `known` ones; it tells the nearest."""
    near = get_close_matches(str(name), known, 1)
    advice = f"did you mean {near[0]}? " if near else ""
    return ConfigurationError(
        str(name), f"there is no such setting; {advice}expected one of {', '.join(sorted(known))}"
    )
