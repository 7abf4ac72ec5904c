"""The configuration is validated once, and a wrong field is named."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.errors import ConfigurationError
from smartpool.pool.heap.policy import POLICY_OF_NAME
from smartpool.units import GiB, MiB

BOOLEANS = [field.name for field in fields(SmartPoolConfig) if field.type == "bool"]
SHARES = ["fragmentation_threshold", "target_fragmentation_reduction"]


@pytest.mark.parametrize(
    ("field", "bad"),
    [(name, bad) for name in BOOLEANS for bad in (1, "yes", None)]
    + [(name, bad) for name in SHARES for bad in (-0.1, 1.1, math.nan, math.inf, "0.3", None, True)]
    + [("idle_age", bad) for bad in (0, -1, math.inf, math.nan, "30", True)]
    + [("optimization_interval", bad) for bad in (0, -1, math.inf, math.nan, "30", None, True)]
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


def test_the_edges_are_allowed():
    for name in SHARES:
        for edge in (0, 0.0, 1, 1.0):
            SmartPoolConfig(**{name: edge})
    SmartPoolConfig(memory_pressure_threshold=1, optimization_interval=1e-9)
    for policy in POLICIES:
        assert SmartPoolConfig(policy=policy).policy in POLICY_OF_NAME
    assert set(POLICIES) == set(POLICY_OF_NAME)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigurationError, match=r"^fragmentation_treshold: .*fragmentation_threshold"):
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
