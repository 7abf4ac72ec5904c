"""What every test gets: the same examples each time, unless exploring is asked for.

`HYPOTHESIS_PROFILE=explore python -m pytest` searches with fresh random examples, and more of them;
what it finds goes into the tests as an explicit example.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "kit"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background of a shell without jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and so for the processes that tests start

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no fault of a test
)
settings.register_profile(
    "explore", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Spare the collector what earlier modules left: each request that fails for lack of memory collects."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let nothing but reference counts, and who asks the collector, end objects."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()
