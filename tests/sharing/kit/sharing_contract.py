"""Two processes, one buffer: what holds on every device that can share."""

from __future__ import annotations

import gc
import multiprocessing

import pytest
import sharing_peers as peers
from waiting import PATIENCE_S, wait_until

import smartpool
from smartpool.errors import SharingError
from smartpool.sharing import endings

MiB = 1 << 20


class SharingContract:
    """Subclasses have a fixture `device`."""

    @pytest.fixture
    def pool(self, device):
        config = smartpool.SmartPoolConfig(
            shareable=True, enable_auto_defragmentation=False, max_bytes=64 * MiB
        )
        with smartpool.SmartPool(device, config) as pool:
            yield pool
            gc.collect()
            pool.trim()
            pool.check()
            assert pool.managers[0].live_bytes == 0

    @pytest.fixture
    def start(self):
        """Return a function that spawns a process with one end of a pipe, and returns the other."""
        context = multiprocessing.get_context("spawn")
        started = []

        def spawn(target, *arguments):
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(*arguments, theirs))
            process.start()
            theirs.close()
            started.append((process, ours))
            return process, ours

        spawn.context = context
        yield spawn
        for process, pipe in started:
            pipe.close()
            process.join(PATIENCE_S)
            assert not process.is_alive()

    def filled(self, pool, data, **options):
        buffer = pool.empty(len(data), "uint8", **options)
        peers.put(buffer, data)
        return buffer

    def test_two_processes_read_and_write_one_buffer(self, pool, start):
        buffer = pool.empty((2, 3), "float16")
        peers.put(buffer, b"twelve bytes")
        shared = pool.export(buffer)
        _, pipe = start(peers.read_and_answer, shared)
        assert pipe.recv() == (b"twelve bytes", (2, 3), "float16", False)
        assert pipe.recv() == "written"
        assert peers.bytes_of(buffer) == b"answer......"
        assert shared.in_use
        pipe.send("go")
        shared.close(wait=True)
        assert pool.managers[0].live_bytes == buffer.nbytes

    def test_a_buffer_of_many_chunks_that_begins_in_the_middle_of_one(self, pool, start):
        before = self.filled(pool, b"x" * 700_001)
        data = bytes(range(256)) * (30 * MiB // 256)
        buffer = self.filled(pool, data)
        with pool.export(buffer) as shared:
            assert shared.description.offset > 0
            assert len(shared.description.chunks) > 1
            _, pipe = start(peers.read_and_answer, shared)
            assert pipe.recv()[0] == data
            pipe.recv()
            pipe.send("go")
            assert peers.bytes_of(before) == b"x" * 700_001
            shared.close(wait=True)

    def test_through_a_queue(self, pool, start):
        buffer = self.filled(pool, b"queued")
        queue = start.context.Queue()
        shared = pool.export(buffer)
        queue.put(shared)
        _, pipe = start(peers.open_from_queue, queue)
        assert pipe.recv() == b"queued"
        pipe.send("go")
        shared.close(wait=True)
        queue.close()
        queue.join_thread()

    def test_a_block_is_not_reused_while_another_process_has_it_open(self, pool, start):
        buffer = self.filled(pool, b"mine".ljust(40 * MiB, b"!"))
        manager = pool.managers[0]
        shared = pool.export(buffer)
        _, pipe = start(peers.read_and_answer, shared)
        pipe.recv(), pipe.recv()
        del buffer
        shared.close()
        assert manager.live_bytes == 40 * MiB  # the importer has it
        assert pool.trim() == 0
        with pytest.raises(smartpool.OutOfMemoryError):
            pool.empty(40 * MiB, "uint8")
        pipe.send("go")
        for process in multiprocessing.active_children():
            process.join(PATIENCE_S)
        again = pool.empty(40 * MiB, "uint8")  # the request that finds no room asks first
        assert manager.live_bytes == 40 * MiB
        del again

    def test_an_importer_that_is_killed_lets_go(self, pool, start):
        buffer = self.filled(pool, b"killed")
        shared = pool.export(buffer)
        process, pipe = start(peers.die_while_open, shared)
        assert pipe.recv() == b"killed"
        process.join(PATIENCE_S)
        assert not shared.in_use
        del buffer
        shared.close()
        assert pool.managers[0].live_bytes == 0

    def test_an_exporter_that_is_killed_leaves_the_memory_to_the_importer(self, device, start):
        process, pipe = start(peers.export_and_die, device)
        shared = pipe.recv()
        buffer = smartpool.open_shared(shared)
        pipe.send("have it")
        process.join(PATIENCE_S)
        assert process.exitcode == -9
        assert peers.bytes_of(buffer) == b"orphan"
        peers.put(buffer, b"heir..")
        again = shared.open()
        assert peers.bytes_of(again) == b"heir.."
        shared.close()
        del buffer, again

    def test_what_the_exporter_closed_cannot_be_opened_any_more(self, pool, start):
        buffer = self.filled(pool, b"too late")
        shared = pool.export(buffer)
        _, pipe = start(peers.open_when_told, shared)
        assert pipe.recv() == "here"
        shared.close()
        pipe.send("open it")
        answer = pipe.recv()
        assert isinstance(answer, SharingError)
        assert "closed it before" in str(answer)
        with pytest.raises(SharingError, match="this one was closed"):
            shared.open()

    def test_the_pool_is_closed_while_another_process_reads(self, device, start):
        pool = smartpool.SmartPool(device, smartpool.SmartPoolConfig(shareable=True))
        manager = pool.managers[0]
        shared = pool.export(self.filled(pool, b"closed"))
        _, pipe = start(peers.read_and_answer, shared)
        assert pipe.recv()[0] == b"closed"
        pool.close()
        shared.close()
        assert manager.driver.held()["chunks"]
        pipe.send("go")
        for process in multiprocessing.active_children():
            process.join(PATIENCE_S)
        endings.sweep()
        assert not any(manager.driver.held().values())

    def test_no_descriptor_is_left_on_either_side(self, pool, start):
        context = start.context
        ours, theirs = context.Pipe()
        process = context.Process(target=peers.count_descriptors, args=(theirs, None))
        process.start()
        theirs.close()
        own = None
        buffer = self.filled(pool, b"again" * 1_000_000)
        for _ in range(6):
            shared = pool.export(buffer)
            ours.send(shared)
            assert ours.recv() == 0
            shared.close(wait=True)
            del shared
            own = own or peers.open_files()
            # multiprocessing hands descriptors over on a thread of its own
            wait_until(lambda own=own: peers.open_files() == own)
        ours.send(None)
        process.join(PATIENCE_S)
        ours.close()
