from __future__ import annotations

import gzip
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import RMM_LOG, SNAPSHOT

from smartpool import files
from smartpool.errors import (
    TraceError,
    TraceFormatError,
)
from smartpool.trace import (
    Trace,
    bundled,
    from_rmm_log,
    from_torch_snapshot,
    read_any,
)


class TestReadAny:
    def test_by_content_and_not_by_name(self, tmp_path):
        for source, expected in (
            (bundled("multistream-mix"), Trace.load(bundled("multistream-mix"))),
            (SNAPSHOT, from_torch_snapshot(SNAPSHOT)),
            (RMM_LOG, from_rmm_log(RMM_LOG)),
        ):
            path = tmp_path / source.stem
            path.write_bytes(source.read_bytes())
            assert read_any(path) == expected

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "got an empty file"),
            (b"id,lower,upper,size\n0,0,1,8\n", "got intervals as CSV, which are for 'smartpool plan'"),
            (b"\xef\xbb\xbfbuffer,start,end,size\n", "which are for 'smartpool plan'"),
            (b'{"format": "smartpool-out-of-memory"}', "is for 'smartpool report'"),
            (b"SQLite format 3\0" + bytes(90), "got an SQLite database; write the snapshot with"),
            (pickle.dumps({"device_traces": []}, 0), "a pickle of protocol 0 or 1"),
            (pickle.dumps([{"device": 0}], 1), "a pickle of protocol 0 or 1"),
            (b"once upon a time", "got a file that begins with b'once upon a time'"),
        ],
    )
    def test_what_is_for_others_is_told(self, tmp_path, content, said):
        path = tmp_path / "x"
        for data in (content, gzip.compress(content)):
            path.write_bytes(data)
            with pytest.raises(TraceFormatError, match=re.escape(said)):
                read_any(path)

    def test_an_option_that_a_format_has_no_use_for_is_refused(self, tmp_path):
        events = tmp_path / "x.csv"
        events.write_text("op,id,size\nallocate,0,8\nfree,0,8\n")
        for path in (bundled("multistream-mix"), SNAPSHOT, events):
            with pytest.raises(TraceError, match="expected an RMM log where unknown frees are to be dropped"):
                read_any(path, drop_unknown_frees=True)
        for path in (bundled("multistream-mix"), RMM_LOG, events):
            with pytest.raises(TraceError, match="expected a PyTorch snapshot where a device is named"):
                read_any(path, device=0)

    def test_device_goes_to_the_snapshot(self):
        assert read_any(SNAPSHOT, device=0).meta["device"] == 0
        with pytest.raises(TraceError, match=r"expected device .*\[0\], got 1"):
            read_any(SNAPSHOT, device=1)

    @given(st.binary(max_size=64))
    def test_anything_else_is_one_error(self, tmp_path_factory, content):
        path = tmp_path_factory.mktemp("any") / "x"
        path.write_bytes(content)
        with pytest.raises(TraceFormatError):
            read_any(path)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_any(tmp_path / "none")

    def test_files_without_an_end(self):
        for reader in (from_torch_snapshot, from_rmm_log, Trace.load, read_any):
            with pytest.raises(TraceFormatError):
                reader("/dev/zero")

    def test_files_that_are_too_long(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
        with pytest.raises(TraceFormatError, match="expected at most 1000 B, got 159 KiB"):
            from_torch_snapshot(SNAPSHOT)
        with pytest.raises(TraceFormatError, match="expected at most 1000 B"):
            from_rmm_log(RMM_LOG)
