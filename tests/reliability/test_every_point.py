"""An interrupt wherever the interpreter looks for one, in the life of a shared buffer.

Promised, and held here: it comes out as itself; nothing that it broke off is done twice, on what is somebody
else's by then; and nothing is lost, neither the block nor a lease nor a descriptor, but one thing that the
driver handed out at that very instant, or what a destructor of a buffer was interrupted in.

Each point is tried once, where it first comes up; with SMARTPOOL_EVERY_LINE=1 each time.
"""

import gc
import os
import pickle
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from signal_points import SignalPoints
from waiting import wait_until

import smartpool
from smartpool.sharing import endings

if sys.platform != "linux":
    pytest.skip("descriptors that stand for memory are Linux's", allow_module_level=True)

EVERY = bool(os.environ.get("SMARTPOOL_EVERY_LINE"))
MiB = 1 << 20
OURS = ("/smartpool/sharing/", "/smartpool/descriptors.py")
ALL = (
    *OURS,
    "/smartpool/buffer.py",
    "/smartpool/owner.py",
    "/smartpool/driver/",
    "/smartpool/smart_pool.py",
    "/smartpool/pool_set.py",
)


def open_here(scene):
    scene.hold(scene.pool.export(scene.buffer)).close()
    shared = scene.hold(scene.pool.export(scene.buffer))
    opened = scene.hold(shared.open())
    bytes(opened.memoryview())
    shared.close()
    opened.free()
    scene.pool.trim()


def over_a_socket(scene):
    ours, theirs = scene.sockets
    with scene.pool.export(scene.buffer) as shared:
        shared.send(ours)
        received = scene.hold(smartpool.SharedBuffer.receive(theirs))
        with suppress(smartpool.SharingError):
            scene.hold(received.open())
        received.close()


def by_pickle(scene):
    shared = scene.hold(scene.pool.export(scene.buffer))
    received = scene.hold(pickle.loads(pickle.dumps(shared)))
    scene.hold(received.open()).free()
    shared.close(wait=True)


class Scene:
    """A pool with a block in several chunks, and what a scenario holds: no destructor runs in it."""

    def __init__(self, pool):
        self.pool = pool
        self.buffer = pool.empty(5 * MiB, "uint8")
        self.sockets = socket.socketpair()
        self.held = []

    def hold(self, thing):
        self.held.append(thing)
        return thing

    def end(self):
        """Let go of everything."""
        for one in self.sockets:
            one.close()
        self.held.clear()
        del self.buffer
        gc.collect()


def mappings():
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("smartpool-shared")


def descriptors():
    """Return what is open, by number; the list's own descriptor is gone when it is looked at."""
    found = {}
    for path in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):
            found[path.name] = path.readlink()
    return found


def further_than(files, allowed, *, waits):
    """Return what is open beyond `files`, once another thread has closed its own."""

    def found():
        return dict(descriptors().items() - files.items())

    if waits:
        wait_until(lambda: len(found()) <= allowed)
    return found()


@pytest.mark.parametrize(("scenario", "parts"), [(open_here, ALL), (over_a_socket, OURS), (by_pickle, OURS)])
def test_what_is_promised_holds_at_every_point(scenario, parts, tmp_path, monkeypatch, request):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # it comes in destructors, too
    request.addfinalizer(gc.unfreeze)
    config = smartpool.SmartPoolConfig(shareable=True, enable_auto_defragmentation=False)
    with smartpool.SmartPool("cpu", config) as pool:
        warm = Scene(pool)
        scenario(warm)  # what is made once: a thread, modules
        warm.end()
        counted = Scene(pool)
        points = SignalPoints(parts)
        assert points.run(lambda: scenario(counted)) is None
        counted.end()
        pool.trim()
        files, mapped = descriptors(), mappings()
        gc.freeze()  # what is here now is not looked through at each point
        for nth in points.first() if not EVERY else range(points.count):
            scene, error = Scene(pool), KeyboardInterrupt("broken off")
            points = SignalPoints(parts, nth, error)
            raised = points.run(lambda scene=scene: scenario(scene))
            if points.place is None:
                continue  # threads make it a point more or less
            assert raised is error or raised is None, points.place  # None: in a destructor
            scene.end()
            error.__traceback__ = error.__context__ = None  # their frames hold what the scenario held
            pool.trim()  # one occasion is enough
            if scenario is by_pickle:  # the thread that sends may hold it for a moment
                wait_until(lambda: not (endings._kept or pool.managers[0].live_blocks()))
            assert not pool.managers[0].live_blocks(), points.place
            assert not endings._kept, points.place
            _nothing_of_others_is_touched(pool, tmp_path)
            of_the_driver = points.place[0].startswith(("driver/", "descriptors.py", "sharing/wire.py"))
            lost = further_than(files, int(of_the_driver), waits=scenario is by_pickle)
            assert len(lost) <= of_the_driver, (points.place, lost)
            files |= lost
            left = mappings() - mapped
            assert left <= 3 * of_the_driver, points.place  # the chunks of one buffer
            mapped += max(left, 0)
        pool.check()


def _nothing_of_others_is_touched(pool, folder):
    """Open files, so that they get the numbers that were closed, and let everybody sweep."""
    files = [(folder / str(number)).open("wb+", buffering=0) for number in range(24)]
    for file in files:
        file.write(b"precious")
    pool.export(pool.empty(1, "uint8")).close()
    pool.trim()
    for file in files:
        file.seek(0)
        assert file.read() == b"precious"  # and it is open
        file.close()
