"""The configuration is validated once, and a wrong field is named."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, fields
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.cli import main
from smartpool.config import POLICIES, Policy, Settings, SmartPoolConfig
from smartpool.errors import ConfigurationError
from smartpool.heap.policy import POLICY_OF_NAME, policy_of
from smartpool.smart_pool import SmartPool
from smartpool.units import GiB, MiB


class Size(enum.IntEnum):
    PAGE = 4096


class Indexed:
    def __index__(self):
        return 1


NUMBERS = (
    st.integers()
    | st.sampled_from([0, 1, 10**400, -(10**400), 1 << 63])
    | st.floats()
    | st.floats(0, 1)
    | st.sampled_from(
        [1e300, 5e-324, Fraction(1, 3), Fraction(10**400), Decimal("0.5"), Size.PAGE, Indexed()]
    )
    | st.sampled_from([np.int64(1 << 22), np.uint8(3), np.float32(0.5), np.float64(0.25), np.bool_(1)])
)
ANYTHING = (
    NUMBERS | st.none() | st.booleans() | st.text(max_size=5)
    | st.sampled_from(["tight", "1GiB", "0.5GiB", b"1", (), [1], {}, {1: 2}, object(), complex(1, 0)])
)  # fmt: skip
BOOLEANS = [field.name for field in fields(SmartPoolConfig) if field.type == "bool"]
SHARES = ["fragmentation_threshold", "target_fragmentation_reduction"]


@pytest.mark.parametrize(
    ("field", "bad"),
    [(name, bad) for name in BOOLEANS for bad in (1, "yes", None)]
    + [(name, bad) for name in SHARES for bad in (-0.1, 1.1, math.nan, math.inf, "0.3", None, True)]
    + [("idle_age", bad) for bad in (0, -1, math.inf, math.nan, "30", True)]
    + [("optimization_interval", bad) for bad in (0, -1, math.inf, math.nan, "30", None, True)]
    + [("out_of_memory_dump", bad) for bad in (3, b"folder", "a\0b")]
    + [("memory_pressure_threshold", bad) for bad in (0, -0.5, 1.01, math.nan, "0.8", None, True)]
    + [("policy", bad) for bad in ("fastest", "", None, 3, -0.1, 1.01, math.nan, True, ["tight"])]
    + [("prices", bad) for bad in (3, "dear", {"map": 2})]
    + [("expected_bytes", bad) for bad in (0, -1, 0.5, "0", "much", True)]
    + [("max_bytes", bad) for bad in (0, -1, 0.0, -0.5, 1.5, math.nan, "0", "much", True, [1], "-1GiB")],
)
def test_a_wrong_field_is_named(field, bad):
    with pytest.raises(ConfigurationError, match=f"^{field}: expected") as caught:
        SmartPoolConfig(**{field: bad})
    assert caught.value.field == field
    with pytest.raises(ConfigurationError, match=f"^{field}: expected"):
        SmartPoolConfig.from_mapping({field: bad})


@given(st.sampled_from([field.name for field in fields(SmartPoolConfig)]), ANYTHING)
def test_every_value_is_taken_as_a_plain_one_or_refused_by_name(field, value):
    config = refused = None
    try:
        config = SmartPoolConfig(**{field: value})
    except ConfigurationError as error:
        refused = error
    if config is None:
        assert refused.field == field
        assert "expected" in str(refused)
        return
    kept = getattr(config, field)
    assert type(kept) in (int, float, str, bool, type(None))
    assert kept == value or type(value) is Indexed or math.isclose(kept, value)
    assert 0 <= config.cap(80 * GiB) <= 80 * GiB
    assert hash(config) == hash(SmartPoolConfig(**{field: kept}))


@given(st.sampled_from(["max_bytes", "expected_bytes", "stack_depth"]), st.integers(1, 1 << 62))
def test_an_integer_is_an_integer_whoever_made_it(field, number):
    for made in (np.int64(number), np.uint64(number)):
        assert SmartPoolConfig(**{field: made}) == SmartPoolConfig(**{field: number})


@pytest.mark.parametrize("field", ["optimization_interval", "stack_depth", "policy", "max_bytes"])
def test_what_python_does_not_write_is_told_by_its_length(field):
    with pytest.raises(ConfigurationError, match="got an integer of 16610 bits"):
        SmartPoolConfig(**{field: -(10**5000)})


def test_huge_values_make_a_pool():
    huge = SmartPoolConfig(
        optimization_interval=1e300, idle_age=1e300, max_bytes=10**400, expected_bytes=10**400
    )
    with SmartPool("model:1GiB", huge) as pool:
        passes = pool._maintenance.background.passes
        pool.free(pool.malloc(10 * MiB))
        pool._maintenance.background.wake()
        while pool._maintenance.background.passes == passes:
            assert pool._maintenance.background.running
        assert pool._maintenance.background.error is None


def test_a_configuration_may_be_a_mapping():
    config = SmartPoolConfig(policy="tight", max_bytes="1GiB")
    for given_as in ({"policy": "tight", "max_bytes": "1GiB"}, config, MappingProxyType(asdict(config))):
        assert SmartPoolConfig.of(given_as) == config
    assert SmartPoolConfig.of(None) == SmartPoolConfig()
    assert config.changed({"policy": 0.5}) == SmartPoolConfig(policy=0.5, max_bytes="1GiB")
    for bad in (5, "tight", [("policy", "tight")], True):
        with pytest.raises(ConfigurationError, match=r"^config: expected a SmartPoolConfig, a mapping"):
            SmartPoolConfig.of(bad)


def test_type_checkers_know_every_field():
    hints, settings = get_type_hints(SmartPoolConfig), get_type_hints(Settings)
    assert {field.name: hints[field.name] for field in fields(SmartPoolConfig)} == settings


def test_the_edges_are_allowed():
    for name in SHARES:
        for edge in (0, 0.0, 1, 1.0):
            SmartPoolConfig(**{name: edge})
    SmartPoolConfig(memory_pressure_threshold=1, optimization_interval=1e-9)
    for policy in POLICIES:
        assert SmartPoolConfig(policy=policy).policy in POLICY_OF_NAME
    assert set(POLICIES) == set(POLICY_OF_NAME)


def test_a_further_policy_is_one_line(monkeypatch, capsys):
    """Its numbers follow from its place, and every command that takes a policy knows it."""
    assert set(get_args(Policy)) == set(POLICIES)
    monkeypatch.setitem(POLICIES, "lean", 0.25)
    assert SmartPoolConfig(policy="lean").policy == "lean"
    assert policy_of("lean") == policy_of(0.25)
    with SmartPool("model:1GiB", policy="lean") as pool:
        pool.free(pool.malloc(5 * MiB))
    for command in ("replay", "report", "advise", "watch", "serve"):
        assert main([command, "--help"]) == 0
        assert "lean" in capsys.readouterr().out, command
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    assert "lean" in capsys.readouterr().out


def test_unknown_names_are_refused():
    with pytest.raises(ConfigurationError, match=r"^fragmentation_treshold: .* mean fragmentation_threshold"):
        SmartPoolConfig.from_mapping({"fragmentation_treshold": 0.3})
    with pytest.raises(ConfigurationError):
        SmartPoolConfig.from_mapping({3: 0.3})
    with pytest.raises(TypeError):
        SmartPoolConfig(nonsense=1)


@given(st.integers(1, 1 << 50), st.integers(1, 1 << 50) | st.floats(0, 1, exclude_min=True) | st.none())
def test_the_cap_is_never_above_the_device(device_bytes, limit):
    cap = SmartPoolConfig(max_bytes=limit).cap(device_bytes)
    assert 0 <= cap <= device_bytes
    if limit is None:
        assert cap == device_bytes
    elif isinstance(limit, int):
        assert cap == min(limit, device_bytes)


def test_caps_are_read_like_sizes():
    assert SmartPoolConfig(max_bytes="24GiB").cap(80 * GiB) == 24 * GiB
    assert SmartPoolConfig(max_bytes=0.5).cap(80 * GiB) == 40 * GiB
    assert SmartPoolConfig(max_bytes=1.0).cap(80 * GiB) == 80 * GiB
    assert SmartPoolConfig(max_bytes=5 * MiB).cap(80 * GiB) == 5 * MiB


def test_configurations_are_values():
    assert SmartPoolConfig() == SmartPoolConfig.from_mapping({})
    assert hash(SmartPoolConfig()) == hash(SmartPoolConfig())
    with pytest.raises(AttributeError):
        SmartPoolConfig().policy = "fast"
