"""What travels between processes: any message that is none, and any description that lies, is told so."""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sharing_peers import open_files

import smartpool
from smartpool.errors import SharingError
from smartpool.sharing.shared import SharedBuffer
from smartpool.sharing.wire import Description

MiB = 1 << 20
HEADER = struct.Struct("!3scII")
SOUND = {
    "device": "cpu", "identity": "", "offset": 0, "chunks": [2 * MiB], "nbytes": 4, "shape": [1],
    "dtype": "float32", "read_only": False,
}  # fmt: skip
ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    | st.sampled_from([-1, 1 << 57, 1 << 70, 0.5, "0", [], {}, [-(2 * MiB), 4 * MiB], [2.0 * MiB], [True]])
)  # fmt: skip


def sound_message(text=None, version=b"2", descriptors=2):
    text = json.dumps(SOUND) if text is None else text
    return HEADER.pack(b"SPb", version, len(text.encode()), descriptors) + text.encode()


@contextmanager
def sent(data, files=(), *, more=b""):
    """Yield the end of a connection at which `data` arrives, then a byte with each of `files`."""
    ours, theirs = socket.socketpair()

    def send():
        with ours:
            try:
                ours.sendall(data)
                for file in files:
                    socket.send_fds(ours, [b"+"], file)
                ours.sendall(more)
            except OSError:  # refused before it was all there
                pass

    sender = threading.Thread(target=send)
    with theirs:
        sender.start()
        try:
            yield theirs
        finally:
            theirs.close()
            sender.join()


def refused(data, files=(), **options):
    before = open_files()
    with sent(data, files, **options) as connection, pytest.raises(SharingError) as told:
        SharedBuffer.receive(connection)
    text = str(told.value)
    del told
    gc.collect()
    assert open_files() == before
    return text


@given(st.sampled_from(sorted(SOUND)), ODD)
def test_a_field_that_is_odd_is_refused_or_sound(name, value):
    text = json.dumps(SOUND | {name: value})
    try:
        made = Description.from_json(text)
    except SharingError:
        return
    assert json.loads(made.to_json()) == json.loads(text)
    numbers = (made.offset, made.nbytes, *made.chunks, *made.shape)
    assert {type(number) for number in numbers} == {int}
    assert type(made.read_only) is bool
    assert made.offset + made.nbytes <= sum(made.chunks) < 1 << 57


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "5", "null", "[" * 200_000, '{"chunks": 5}', "\ud800", json.dumps(SOUND | {"more": 1}),
        json.dumps({name: value for name, value in SOUND.items() if name != "offset"}),
        json.dumps(SOUND).replace("[2097152]", "[1e999]"),
        json.dumps(SOUND).replace("[1]", "[" + "9" * 5000 + "]"),
    ],
)  # fmt: skip
def test_descriptions_that_are_none(text):
    with pytest.raises(SharingError):
        Description.from_json(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"offset": 0', '"offset": -8'),
        ('"nbytes": 4', '"nbytes": 99999999'),
        ('"shape": [1]', '"shape": [17179869184]'),
        ('"dtype": "float32"', '"dtype": "float64"'),
        ('"chunks": [2097152]', '"chunks": []'),
    ],
)
def test_descriptions_that_lie(old, new):
    text = json.dumps(SOUND)
    assert old in text
    with pytest.raises(SharingError):
        Description.from_json(text.replace(old, new))


@given(st.binary(max_size=40) | st.binary(max_size=30).map(lambda tail: sound_message()[:12] + tail))
def test_garbage(data):
    assert "expected" in refused(data)


def test_every_beginning_of_a_message():
    message = sound_message()
    for length in range(0, len(message), 7):
        assert "the other end closed" in refused(message[:length])
    assert "got none" in refused(message)
    assert "got none" in refused(message, more=b"++")


def test_another_version_is_told():
    for version in (b"1", b"3", b"\xff"):
        assert "have the same smartpool" in refused(sound_message(version=version))


def test_more_or_fewer_descriptors_than_chunks():
    for count in (0, 1, 3, 1 << 31):
        assert "expected 2 descriptors" in refused(sound_message(descriptors=count))


def test_a_descriptor_of_a_folder_or_several_at_once():
    folder = os.open(os.curdir, os.O_RDONLY)
    try:
        assert "of memory" in refused(sound_message(), [[folder]])
        assert "more came than one" in refused(sound_message(), [[folder, 0, 0]])
    finally:
        os.close(folder)


def test_descriptors_that_come_with_the_text_are_not_ours():
    before = open_files()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        message = sound_message()
        socket.send_fds(ours, [message], [0, 1])
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(SharingError, match="got none"):
            SharedBuffer.receive(theirs)
    assert open_files() == before


@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
def test_sockets_of_other_kinds(family):
    with socket.socket(getattr(socket, family), socket.SOCK_DGRAM) as other:
        for wrong in (other, None, 5, "socket"):
            with pytest.raises(SharingError, match="Unix stream socket"):
                SharedBuffer.receive(wrong)


def test_a_hundred_descriptors_and_more():
    config = smartpool.SmartPoolConfig(shareable=True, enable_auto_defragmentation=False, policy="tight")
    with smartpool.SmartPool("cpu", config) as pool:
        buffer = pool.empty(600 * MiB, "uint8")
        shared = pool.export(buffer)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            sender = threading.Thread(target=shared.send, args=(ours,))
            sender.start()
            received = SharedBuffer.receive(theirs)
            sender.join()
        assert len(received._files) == len(shared.description.chunks) + 1 > 2
        received.open().memoryview()[-3:] = b"end"
        assert bytes(buffer.memoryview()[-3:]) == b"end"
        shared.close()
        received.close()
