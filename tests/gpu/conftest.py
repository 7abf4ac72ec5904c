"""Let the tests of this folder import the kit of `tests/driver`."""

import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("driver_contract", "driver_machine")
sys.path.insert(0, str(Path(__file__).parents[1] / "driver" / "kit"))
