"""The reader of trace files against files that are truncated, damaged, oversized and hostile."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.errors import TraceError, TraceFormatError
from smartpool.npz import write_npz
from smartpool.trace import Trace
from smartpool.units import MiB

GOOD = Trace.from_columns(
    "good",
    op=[0, 0, 1, 0, 1],
    id=[0, 1, 0, 2, 2],
    size=[512, 2**40, 512, 7, 7],
    stream=[0, 1, 0, 1, 1],
    t_us=[0, 3, 3, 900, 2**40],
    meta={"recorder": "hand", "peaks": {"live": 1}, "text": "ünï\ud800"},
)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "good.npz"
    GOOD.save(path)
    return path.read_bytes()


@pytest.fixture
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "x.npz"


def array_bytes(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def members(**changes):
    """The members of a good file, with some replaced (bytes) or left out (None)."""
    arrays = {name: array_bytes(getattr(GOOD, name)) for name in ("op", "id", "size", "stream", "t_us")}
    arrays["meta"] = array_bytes(np.array(json.dumps(GOOD.meta)))
    return {name: data for name, data in {**arrays, **changes}.items() if data is not None}


def write_zip(path, contents, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(f"{name}.npy", data)


def header(text, data=b"", version=1):
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(text)) + text + data


def refused(path, match):
    """Load, expect one clear error that begins with the path, and bounded memory on the way to it."""
    tracemalloc.start()
    try:
        with pytest.raises(TraceFormatError, match=match) as caught:
            Trace.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert peak < 2 * MiB + 4 * path.stat().st_size
    return caught


class TestRoundTrip:
    def test_file_gives_the_trace_back(self, scratch):
        GOOD.save(scratch)
        assert Trace.load(scratch) == GOOD

    @given(
        sizes=st.lists(st.integers(1, 2**50), max_size=20),
        name=st.text(max_size=20),
        meta=st.dictionaries(
            st.text(max_size=5),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                max_leaves=5,
            ),
            max_size=4,
        ),
    )
    @settings(max_examples=50)
    def test_any_trace_comes_back_as_it_was(self, tmp_path_factory, sizes, name, meta):
        trace = Trace.from_columns(
            name,
            op=[0] * len(sizes),
            id=range(len(sizes)),
            size=sizes,
            stream=[n % 256 for n in sizes],
            meta=meta,
        )
        path = tmp_path_factory.mktemp("trip") / "trace"
        trace.save(path)
        assert Trace.load(path) == trace

    def test_a_trace_that_shrinks_like_a_bomb_comes_back(self, scratch):
        events = 10**6
        trace = Trace.from_columns(
            "same", op=np.arange(events) % 2, id=[0] * events, size=[8] * events, t_us=[0] * events
        )
        trace.save(scratch)
        assert scratch.stat().st_size > 20 * events
        assert Trace.load(scratch) == trace

    def test_memory_is_at_most_five_times_what_the_file_unpacks_to(self, scratch):
        events = 200_000
        Trace.from_columns(
            "long", op=np.arange(events) % 2, id=np.arange(events) // 2, size=[8] * events
        ).save(scratch)
        tracemalloc.start()
        Trace.load(scratch)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5 * 22 * events + MiB

    def test_metadata_that_could_not_be_read_is_not_written(self, scratch):
        trace = Trace.from_columns("x", op=[], id=[], size=[], meta={"long": "x" * MiB})
        with pytest.raises(TraceFormatError, match="metadata of at most 1048576 characters"):
            trace.save(scratch)
        assert list(scratch.parent.iterdir()) == []

    def test_file_is_numpys_own(self, scratch):
        GOOD.save(scratch)
        with np.load(scratch, allow_pickle=False) as arrays:
            assert arrays["size"].tolist() == GOOD.size.tolist()
            assert json.loads(str(arrays["meta"])) == GOOD.meta

    def test_the_same_trace_gives_the_same_bytes(self, tmp_path):
        GOOD.save(tmp_path / "a")
        GOOD.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_saving_replaces_whole_or_not_at_all(self, scratch):
        GOOD.save(scratch)
        before = scratch.read_bytes()
        with pytest.raises(TypeError):
            write_npz(scratch, {"op": GOOD.op}, {"not": object()})
        with pytest.raises(OSError, match="No such file"):
            GOOD.save(scratch.parent / "missing" / "x.npz")
        assert scratch.read_bytes() == before
        assert [path.name for path in scratch.parent.iterdir()] == [scratch.name]


class TestOtherWriters:
    @pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_stored_and_deflated(self, scratch, compression):
        write_zip(scratch, members(), compression)
        assert Trace.load(scratch) == GOOD

    @pytest.mark.parametrize("dtype", ["<i8", ">i8", "<u4", ">i2", "|i1"])
    def test_any_integers_that_hold_the_values(self, scratch, dtype):
        write_zip(
            scratch,
            members(op=array_bytes(GOOD.op.astype(dtype)), stream=array_bytes(GOOD.stream.astype(dtype))),
        )
        assert Trace.load(scratch) == GOOD

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_all_versions_of_the_array_header(self, scratch, version):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(GOOD.op), version=version)
        write_zip(scratch, members(op=buffer.getvalue()))
        assert Trace.load(scratch) == GOOD

    def test_header_with_other_order_and_spacing(self, scratch):
        text = b"{'shape':(5,),'fortran_order':True,'descr':'|u1'}\n"
        write_zip(scratch, members(op=header(text, GOOD.op.tobytes())))
        assert Trace.load(scratch) == GOOD

    def test_meta_as_bytes_and_big_endian_text(self, scratch):
        for array in (np.bytes_(json.dumps(GOOD.meta)), np.array(json.dumps(GOOD.meta)).astype(">U400")):
            write_zip(scratch, members(meta=array_bytes(np.asarray(array))))
            assert Trace.load(scratch) == GOOD

    def test_without_meta_the_file_names_the_trace(self, scratch):
        write_zip(scratch, members(meta=None))
        trace = Trace.load(scratch)
        assert (trace.name, trace.meta) == ("x", {"name": "x"})

    def test_further_members_are_ignored_unread(self, scratch):
        write_zip(scratch, members(frames=b"anything", bomb=array_bytes(np.array([object()]))))
        assert Trace.load(scratch) == GOOD


class TestFuzz:
    def test_every_truncation_is_refused(self, good_bytes, scratch):
        for length in range(0, len(good_bytes), 7):
            scratch.write_bytes(good_bytes[:length])
            with pytest.raises(TraceFormatError):
                Trace.load(scratch)

    @given(st.data())
    @settings(max_examples=300)
    def test_flipped_bits_give_the_trace_or_one_error(self, good_bytes, tmp_path_factory, data):
        damaged = bytearray(good_bytes)
        for _ in range(data.draw(st.integers(1, 3))):
            position = data.draw(st.integers(0, len(damaged) * 8 - 1))
            damaged[position // 8] ^= 1 << position % 8
        self.load(tmp_path_factory, bytes(damaged))

    @given(st.data())
    @settings(max_examples=150)
    def test_damage_inside_the_arrays_gives_a_trace_or_one_error(self, tmp_path_factory, data):
        # Behind a good CRC, where the checks of the archive do not help.
        name = data.draw(st.sampled_from(sorted(members())))
        damaged = bytearray(members()[name])
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        del damaged[data.draw(st.integers(0, 10**4)) :]
        path = tmp_path_factory.mktemp("fuzz") / "x.npz"
        write_zip(path, members(**{name: bytes(damaged)}))
        self.load(tmp_path_factory, path.read_bytes())

    @given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"PK\x03\x04" + tail))
    def test_arbitrary_bytes_are_refused(self, tmp_path_factory, content):
        path = tmp_path_factory.mktemp("fuzz") / "x.npz"
        path.write_bytes(content)
        with pytest.raises(TraceFormatError):
            Trace.load(path)

    @given(
        st.binary(max_size=120)
        | st.text("{}()[]'\" :,<>|iuUSOVf0123456789descrshapefortranTFals", max_size=80).map(str.encode)
    )
    @settings(max_examples=200)
    def test_arbitrary_headers_give_one_error(self, tmp_path_factory, text):
        path = tmp_path_factory.mktemp("fuzz") / "x.npz"
        write_zip(path, members(op=header(text, GOOD.op.tobytes())))
        self.load(tmp_path_factory, path.read_bytes())

    @staticmethod
    def load(tmp_path_factory, content):
        path = tmp_path_factory.mktemp("fuzz") / "x.npz"
        path.write_bytes(content)
        try:
            Trace.load(path).check()
            message = str(path)
        except TraceError as error:
            message = str(error)
        assert str(path) in message


class TestHostile:
    def test_object_array_is_refused_and_its_pickle_not_run(self, scratch, tmp_path):
        class Evil:
            def __reduce__(self):
                return Path.touch, (tmp_path / "was_run",)

        write_zip(scratch, members(op=array_bytes(np.array([Evil()] * 5, dtype=object))))
        refused(scratch, "column 'op': expected one dimension of integers, got object")
        assert not (tmp_path / "was_run").exists()

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            (
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999999999,), }",
                "999999999999999999 items",
            ),
            (b"{'descr': '|u1', 'fortran_order': False, 'shape': (4,), }", "its data are 5 bytes"),
            (
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (5,1), }",
                "expected one dimension of integers",
            ),
            (b"{'descr': '|u1', 'fortran_order': False, 'shape': (-5,), }", "its header says -5 items"),
            (
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (), }",
                "expected one dimension of integers",
            ),
            (b"{'descr': '|S5', 'fortran_order': False, 'shape': (), }", "one dimension of integers"),
            (b"{'descr': '|S5', 'fortran_order': False, 'shape': (1,), }", "one dimension of integers"),
            (
                b"{'descr': '|S999999999', 'fortran_order': False, 'shape': (), }",
                "expected one dimension of integers, got .S999999999",
            ),
            (
                b"{'descr': '<u5', 'fortran_order': False, 'shape': (1,), }",
                "expected a NumPy array with one dimension of integers",
            ),
            (
                b"{'descr': '<f8', 'fortran_order': False, 'shape': (5,), }",
                "expected one dimension of integers",
            ),
            (
                b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (5,), }",
                "expected one dimension of integers",
            ),
            (
                b"{'descr': '|u1', 'descr': '|u1', 'shape': (5,), }",
                "expected a NumPy array with one dimension of integers",
            ),
            (b"__import__('os').abort()", "expected a NumPy array with one dimension of integers"),
            (b"(" * 9000, "expected a NumPy array with one dimension of integers"),
            (b" " * 60000, "expected a NumPy array with one dimension of integers"),
            (
                b"{" + b"'fortran_order': True," * 40 + b"}",
                "expected a NumPy array with one dimension of integers",
            ),
            (b"", "expected a NumPy array with one dimension of integers"),
        ],
    )
    def test_array_headers(self, scratch, text, match):
        write_zip(scratch, members(op=header(text, GOOD.op.tobytes())))
        refused(scratch, match)

    @given(
        descr=st.sampled_from(
            ["|u1", "<i8", "<U9999999", "<u5", "(9,9)i8", "i8,i8", "|O", "|V9999", "<M8", "-"]
        ),
        shape=st.lists(st.integers(-(2**70), 2**70) | st.integers(-1, 6), max_size=3).map(tuple),
        version=st.sampled_from([1, 2, 3, 9]),
        name=st.sampled_from(["op", "meta"]),
    )
    def test_no_header_makes_numpy_take_what_the_file_has_not(
        self, tmp_path_factory, descr, shape, version, name
    ):
        path = tmp_path_factory.mktemp("claims") / "x.npz"
        text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
        write_zip(path, members(**{name: header(text, GOOD.op.tobytes(), version)}))
        if (name, descr, shape) == ("op", "|u1", (5,)):
            assert Trace.load(path) == GOOD
        else:
            refused(path, name)

    def test_array_that_is_none(self, scratch):
        write_zip(scratch, members(op=b"PK"))
        refused(scratch, "column 'op': expected a NumPy array")

    def test_header_longer_than_its_array(self, scratch):
        write_zip(scratch, members(op=b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)))
        refused(scratch, "column 'op'")

    @pytest.mark.parametrize("name", ["op", "size", "meta"])
    def test_missing_column(self, scratch, name):
        write_zip(scratch, members(**{name: None}))
        if name == "meta":
            Trace.load(scratch)
        else:
            refused(scratch, f"expected a column '{name}'")

    def test_columns_of_different_lengths(self, scratch):
        write_zip(scratch, members(id=array_bytes(np.arange(4, dtype=np.int32))))
        refused(scratch, "expected columns of one length")

    def test_zip_bomb_by_ratio(self, scratch):
        events = 40_000_000
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in members():
                with archive.open(f"{name}.npy", "w") as file:
                    file.write(header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % events))
                    for _ in range(events // 10**6):
                        file.write(bytes(10**6))
        assert scratch.stat().st_size < MiB
        refused(scratch, "claims to unpack to 229 MiB, more than 100 times its length")

    def test_member_that_claims_less_than_it_holds(self, scratch):
        write_zip(
            scratch,
            members(op=header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (5,), }", bytes(8 * MiB))),
        )
        content = bytearray(scratch.read_bytes())
        entry = content.index(b"PK\x01\x02")
        content[entry + 24 : entry + 28] = struct.pack("<I", 72)
        scratch.write_bytes(content)
        refused(scratch, "BadZipFile|its header says")

    def test_directory_of_many_members(self, scratch):
        with zipfile.ZipFile(scratch, "w") as archive:
            for number in range(20_000):
                archive.writestr(f"{number:08}", b"")
        refused(scratch, "expected a directory of at most 1 MiB")

    def test_names_of_members_do_not_fill_the_message(self, scratch):
        write_zip(scratch, {"x" * 60_000: b""})
        assert len(str(refused(scratch, "expected a column 'op', got").value)) < 400
        # The entry's length of name says 65535: `zipfile` quotes all of it.
        write_zip(scratch, members(padding=bytes(range(256)) * 300), zipfile.ZIP_STORED)
        content = bytearray(scratch.read_bytes())
        content[26:28] = b"\xff\xff"
        scratch.write_bytes(content)
        assert len(str(refused(scratch, "BadZipFile").value)) < 400

    def test_member_twice(self, scratch):
        write_zip(scratch, members())
        with zipfile.ZipFile(scratch, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("op.npy", array_bytes(GOOD.op))
        refused(scratch, "expected every member once, got 'op' twice")

    @pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_compression_that_unpacks_without_bound(self, scratch, compression):
        write_zip(scratch, members(), compression)
        refused(scratch, "expected 'op' stored or deflated")

    def test_encrypted_member(self, scratch):
        write_zip(scratch, members())
        content = bytearray(scratch.read_bytes())
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(signature) + flags] |= 1
        scratch.write_bytes(content)
        refused(scratch, "encrypted")

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "expected JSON"),
            ("[]", "expected a JSON object, got list"),
            ("{", "expected JSON"),
            ('{"a": NaN}', "NaN is no JSON number"),
            ("[" * 100_000, "expected JSON"),
            ('{"a": ' + "9" * 10_000 + "}", "expected JSON"),
            ('{"a": 1e999}', "meta cannot be written as JSON"),
        ],
    )
    def test_meta_that_is_none(self, scratch, text, match):
        write_zip(scratch, members(meta=array_bytes(np.array(text))))
        refused(scratch, match)

    def test_meta_with_code_points_that_do_not_exist(self, scratch):
        bad = header(b"{'descr': '<U1', 'fortran_order': False, 'shape': (), }", b"\xff\xff\xff\xff")
        write_zip(scratch, members(meta=bad))
        refused(scratch, "expected JSON, got text that is not")

    def test_meta_of_many_megabytes(self, scratch):
        write_zip(scratch, members(meta=array_bytes(np.bytes_(b" " * 5 * MiB))))
        with pytest.raises(TraceFormatError, match="meta: expected one string"):
            Trace.load(scratch)

    def test_no_such_file_is_the_systems_own_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            Trace.load(tmp_path / "none.npz")
        with pytest.raises(TraceFormatError, match="got a folder"):
            Trace.load(tmp_path)

    def test_contradiction_in_a_file_names_file_and_row(self, scratch):
        write_zip(scratch, members(op=array_bytes(np.array([0, 0, 1, 1, 1], np.uint8))))
        with pytest.raises(
            TraceError, match=r"x\.npz: trace 'good', row 3: frees allocation 2, which was never"
        ):
            Trace.load(scratch)
