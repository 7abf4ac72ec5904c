"""What the other process does in the tests of sharing: functions that a spawned process can import."""

import os
import signal
import sys
from pathlib import Path

import smartpool
from smartpool.errors import SharingError


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def bytes_of(buffer):
    """Return the contents of a small buffer, on whichever device."""
    driver = buffer._pool().driver
    return driver.read(buffer.pointer, buffer.nbytes)


def put(buffer, data):
    buffer._pool().driver.write(buffer.pointer, data)


def read_and_answer(shared, pipe):
    """Open, send what is there, write an answer, and stay until told to go."""
    buffer = shared.open()
    pipe.send((bytes_of(buffer), buffer.shape, buffer.dtype.name, buffer.read_only))
    put(buffer, b"answer".ljust(buffer.nbytes, b"."))
    pipe.send("written")
    pipe.recv()


def open_from_queue(queue, pipe):
    buffer = queue.get().open()
    pipe.send(bytes_of(buffer))
    pipe.recv()


def die_while_open(shared, pipe):
    buffer = shared.open()
    pipe.send(bytes_of(buffer))
    os.kill(os.getpid(), signal.SIGKILL)


def open_when_told(shared, pipe):
    pipe.send("here")
    pipe.recv()
    try:
        pipe.send(bytes_of(shared.open()))
    except SharingError as error:
        pipe.send(error)


def export_and_die(device, pipe):
    """Be an exporter that is killed while the importer reads."""
    pool = smartpool.SmartPool(device, smartpool.SmartPoolConfig(shareable=True))
    buffer = pool.empty(6, "uint8")
    put(buffer, b"orphan")
    shared = pool.export(buffer)
    pipe.send(shared)
    pipe.recv()  # the importer has it
    pipe.close()
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def count_descriptors(pipe, device):
    """Open and close what comes, and tell how many descriptors are left behind."""
    del device
    first = None
    while (shared := pipe.recv()) is not None:
        buffer = shared.open()
        shared.close()
        del buffer, shared
        first = first or open_files()
        pipe.send(open_files() - first)
