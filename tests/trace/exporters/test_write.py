"""What is written for other tools can be read back, and is what those tools expect."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import same_columns, stacks, traces
from hypothesis import given

from smartpool.errors import ConfigurationError
from smartpool.trace import Trace, bundled, read_any
from smartpool.trace.exporters import (
    FORMATS,
    format_of,
    write_any,
)
from smartpool.trace.exporters.torch_snapshot import addresses_of


class TestFormats:
    @given(trace=traces())
    def test_npz_keeps_everything(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("npz") / "t.npz"
        assert write_any(trace, path) == "npz"
        assert read_any(path) == trace

    @given(trace=traces())
    def test_csv_keeps_every_column(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("csv") / "t.csv"
        assert write_any(trace, path) == "csv"
        again = read_any(path)
        assert same_columns(trace, again)
        assert again.columns().keys() == trace.columns().keys()
        assert stacks(again) == stacks(trace)
        assert np.array_equal(addresses_of(again), addresses_of(trace))

    @pytest.mark.parametrize(("name", "suffixes"), FORMATS.items())
    def test_suffixes_choose_the_format_and_a_name_overrides_them(self, name, suffixes):
        for suffix in suffixes:
            assert format_of(f"x{suffix}") == name
            assert format_of(f"X{suffix.upper()}") == name
        assert format_of("anything", name) == name

    @pytest.mark.parametrize(("path", "to"), [("t", None), ("t.xyz", None), ("t.csv", "xml")])
    def test_an_unknown_format_writes_nothing(self, tmp_path, path, to):
        with pytest.raises(ConfigurationError, match="expected"):
            write_any(Trace.load(bundled("multistream-mix")), tmp_path / path, to=to)
        assert list(tmp_path.iterdir()) == []
