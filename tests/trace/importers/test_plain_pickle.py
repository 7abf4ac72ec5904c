"""The reader of plain pickles: as good as `pickle` for plain data, and deaf to everything else."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.errors import TraceFormatError, UnsafePickleError
from smartpool.trace.importers.plain_pickle import PlainUnpickler

SNAPSHOT = Path(__file__).parents[2] / "data" / "inputs" / "torch_snapshot.pickle"

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=300)
)
keys = st.text(max_size=5) | st.integers(-(2**31), 2**31 - 1)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner, max_size=5).map(tuple),
    max_leaves=30,
)


def load(data):
    return PlainUnpickler(data).load()


class TestPlain:
    @given(plain, st.integers(2, 5))
    def test_reads_what_pickle_writes(self, value, protocol):
        assert load(pickle.dumps(value, protocol=protocol)) == value

    @given(plain)
    def test_reads_optimised_pickles(self, value):
        assert load(pickletools.optimize(pickle.dumps(value, protocol=2))) == value

    def test_reads_shared_and_cyclic_lists(self):
        shared = ["s"] * 3000
        value = [shared, shared]
        read = load(pickle.dumps(value))
        assert read == value
        assert read[0] is read[1]
        value.append(value)
        read = load(pickle.dumps(value))
        assert read[2] is read

    def test_reads_a_real_snapshot(self):
        data = SNAPSHOT.read_bytes()
        assert load(data) == pickle.loads(data)


class Reduces:
    def __reduce__(self):
        return print, ("run",)


class TestRefused:
    @pytest.mark.parametrize(
        "value",
        [
            print,
            Reduces(),
            object(),
            int,
            b"bytes",
            bytearray(b"bytes"),
            {1, 2},
            frozenset({1}),
            1j,
            dt.datetime(2000, 1, 1),  # noqa: DTZ001
            collections.OrderedDict(a=1),
            collections.Counter("a"),
            range(3),
            2**200,
            2**3000,
            {2**40: 1},
            {1.5: 1},
            {(1, 2): 1},
            {None: 1},
            {True: 1},
        ],
        ids=lambda value: repr(value).split(" at ")[0],
    )
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_whatever_is_not_plain(self, value, protocol, capsys):
        with pytest.raises(UnsafePickleError):
            load(pickle.dumps(["before", value], protocol=protocol))
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        "opcode",
        [
            info.code
            for info in pickletools.opcodes
            if info.code.encode("latin-1") not in PlainUnpickler._BY_OPCODE
        ],
    )
    def test_every_other_instruction_there_is(self, opcode):
        if opcode == ".":
            return
        for tail in (b".", b"cposix\nsystem\n.", b"\0" * 16 + b"."):
            with pytest.raises(UnsafePickleError, match="nothing was run"):
                load(b"\x80\x04]" + opcode.encode("latin-1") + tail)

    def test_instructions_that_do_not_exist(self):
        known = {info.code.encode("latin-1") for info in pickletools.opcodes}
        for code in {bytes([code]) for code in range(256)} - known:
            with pytest.raises(UnsafePickleError):
                load(b"\x80\x04" + code + b".")

    @pytest.mark.parametrize("protocol", [0, 1])
    def test_protocols_of_text(self, protocol):
        with pytest.raises(TraceFormatError, match="expected a pickle of protocol 2 or later"):
            load(pickle.dumps([1], protocol=protocol))

    def test_protocols_of_the_future(self):
        with pytest.raises(TraceFormatError, match="expected a pickle of protocol 2 to 5"):
            load(b"\x80\x06N.")


class TestDamaged:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b".",
            b"NN.",
            b"N(.",
            b"a.",
            b"Na.",
            b"]a.",
            b"NNa.",
            b"}Ns.",
            b"](NNs.",
            b"}(Nu.",
            b"]e.",
            b"u.",
            b"t.",
            b"(N\x85\x86.",
            b"\x85.",
            b"N\x86.",
            b"(\x85.",
            b"h\x00.",
            b"\x94.",
            b"q\x00.",
            b"j\x00\x00\x00\x00.",
            b"K",
            b"J\x00\x00",
            b"G\x00",
            b"\x8a\x05\x00",
            b"\x8c\x05abc",
            b"\x8c\x01\xff.",
            b"X\x05\x00\x00\x00abc",
            b"\x95\x00\x00",
            b"N",
        ],
    )
    def test_programs_that_make_no_sense(self, body):
        with pytest.raises(TraceFormatError, match=r"damaged|truncated|expected one object") as caught:
            load(b"\x80\x04" + body)
        assert type(caught.value) is TraceFormatError

    def test_every_truncation(self):
        data = pickle.dumps({"a": [1, 2.5, None, (True, "x" * 300)], "b": 2**60})
        for length in range(len(data)):
            with pytest.raises(TraceFormatError):
                load(data[:length])

    @given(st.lists(st.sampled_from(sorted(PlainUnpickler._BY_OPCODE)) | st.binary(max_size=3), max_size=60))
    @settings(max_examples=300)
    def test_any_program_ends_with_an_object_or_one_error(self, pieces):
        with contextlib.suppress(TraceFormatError):
            load(b"\x80\x04" + b"".join(pieces) + b".")


def cost(data):
    """Bytes of memory at most that reading `data` takes, refused or not, and the refusal."""
    tracemalloc.start()
    try:
        load(data)
        outcome = None
    except TraceFormatError as error:
        outcome = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, outcome


class TestBombs:
    @pytest.mark.parametrize(
        ("body", "match"),
        [
            (b"Nr\xff\xff\xff\x7f.", "memo entry 2147483647 where 0 comes next"),
            (b"Nq\x05.", "memo entry 5 where 0 comes next"),
            (b"X\xff\xff\xff\xff.", "truncated"),
            (b"\x8d" + b"\xff" * 8 + b".", "truncated"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated"),
            (b"\x8a\xff" + b"\x01" * 255 + b".", "an integer of 255 bytes"),
            (b"\x8b\xff\xff\xff\x7f.", "instruction 0x8b"),
            (b"B\xff\xff\xff\x7f.", "instruction 0x42"),
            (b"\x8e" + b"\xff" * 8 + b".", "instruction 0x8e"),
            (b"\x96" + b"\xff" * 8 + b".", "instruction 0x96"),
            (b"I" + b"9" * 10**6 + b"\n.", "instruction 0x49"),
            (b"(" * 300_000, "more than 1000 containers within one another"),
            (b"}" * 300_000, "more than one container for every 8 bytes"),
            (b"]" * 300_000, "more than one container for every 8 bytes"),
            (b"]" + b"\x85" * 300_000, "more than one container for every 8 bytes"),
        ],
    )
    def test_claims_are_refused_before_memory_is_taken(self, body, match):
        peak, error = cost(b"\x80\x04" + body)
        assert error is not None
        assert match in str(error)
        assert peak < 100_000 + 30 * len(body)

    @pytest.mark.parametrize(
        "unit",
        [
            b"N",
            b"K\x01",
            b"J\xff\xff\xff\x7f",
            b"M\xff\xff",
            b"\x8a\x01\x7f",
            b"G" + b"\x01" * 8,
            b"\x8c\x02\xc3\xbf",
            b"\x8c\x04\xf0\x90\x80\x80",
            b"N\x94",
            b"}K\x01Ns" + b"N" * 3,
            b"](K\x01e" + b"N" * 3,
            b"K\x01\x85" + b"N" * 5,
        ],
    )
    def test_memory_stays_within_the_promise(self, unit):
        body = b"\x80\x04" + unit * (150_000 // len(unit))
        peak, _ = cost(body)
        assert peak < 50 * len(body)

    def test_exponential_nesting_of_shared_lists_is_linear_to_read(self):
        # Each list holds the one before it twice: 2^1000 leaves for whoever walks them.
        lists = b"".join(b"](" + b"j%b" % struct.pack("<I", n) * 2 + b"e\x94" for n in range(1000))
        peak, error = cost(b"\x80\x04(]\x94" + lists + b"t.")
        assert error is None
        assert peak < 50 * len(lists)

    def test_deep_nesting_is_read_and_freed_without_recursion(self):
        # A frame takes nine bytes and does nothing, which pays for the container.
        assert len(load(b"\x80\x04]" + b"\x85\x95\0\0\0\0\0\0\0\0" * 100_000 + b".")) == 1
