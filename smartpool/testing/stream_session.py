"""A session on several streams: who uses a block where, and whether the allocator keeps them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from smartpool.testing.contract import Contract
from smartpool.testing.invariants import Invariant
from smartpool.testing.session import Session
from smartpool.testing.steps import Block, Free, Look, Malloc, Signal, Use
from smartpool.testing.watching import WatchedDriver
from smartpool.testing.wording import Wording

__all__ = ["BY", "StreamSession"]

BY: Final = ("events", "bytes")
_VALUES: Final = 250


class StreamSession(Session):
    """A session whose driver watches order; see `Session` for the rest.

    Parameters
    ----------
    contract
        With a driver and streams.
    by
        ``"events"``: the allocator orders its streams through the driver that it is given, and every
        request is decided by vector clocks. ``"bytes"``: it has a way of its own, and what counts is
        whether work that was queued before a free sees foreign bytes.
    """

    watched = True

    def __init__(self, contract: Contract, *, by: str = "events", stamp: bool = False) -> None:
        self.by = by
        super().__init__(contract, stamp=stamp)
        self._users: dict[str, set[int]] = {}
        self._values: dict[str, int] = {}
        self._filled: set[tuple[str, int]] = set()  # a look comes behind a fill of its own stream
        self._looks: dict[str, tuple[int, int, int]] = {}  # name -> number of the look, size, value

    def open_driver(self) -> WatchedDriver:
        """Return a fresh driver, watched."""
        driver = WatchedDriver(super().open_driver())
        if self.by == "bytes":
            driver.prepare()
        return driver

    def users(self, block: Block) -> list[int]:
        """Return the numbers of the streams that a live block may be used on."""
        return sorted(self._users[block.name])

    # ------------------------------------------------------------------ what a program does

    def use(self, block: Block, stream: int) -> None:
        """Fill the block on a stream, behind all that used it so far.

        Left out on a stream that the allocator cannot be told of.
        """
        users = self._users[block.name]
        behind = () if stream in users else tuple(sorted(users))
        if not block.nbytes or (behind and self.contract.record_stream is None):
            return
        self._order(stream, behind)
        if behind and self.contract.record_stream is not None:
            self._hook(self.contract.record_stream)(block.handle, self.subject.streams[stream])
            users.add(stream)
        value = self._values.setdefault(block.name, block.number % _VALUES + 1)
        self.steps.append(
            Use(
                name=block.name,
                nbytes=block.nbytes,
                stream=stream,
                value=value,
                behind=behind,
                recorded=bool(behind),
            )
        )
        self.driver.fill(block.address, value, block.nbytes, self.subject.handles[stream])
        self._filled.add((block.name, stream))
        self._agrees()

    def record_stream(self, block: Block, stream: int) -> None:
        """Let a further stream use the block, from what was queued so far on."""
        if block.nbytes:
            self.use(block, stream)

    def look(self, block: Block, stream: int) -> None:
        """Queue a look at a block that was filled, on a stream that uses it."""
        if (block.name, stream) in self._filled:
            self.steps.append(Look(name=block.name, nbytes=block.nbytes, stream=stream))
            number = self.driver.look(block.address, block.nbytes, self.subject.handles[stream])
            self._looks[block.name] = number, block.nbytes, self._values[block.name]

    def free(self, block: Block | None, *, stream: int | None = None) -> None:
        """Free a block; on another stream than its own, behind all that used it, as a caller must."""
        if block is None:
            return
        users = self._users[block.name]
        if stream is not None and not self.subject.free_takes_stream:
            stream = None
        behind = () if stream in (None, block.stream or 0) else tuple(sorted(users - {stream}))
        if stream is not None:
            self._order(stream, behind)
        self._release(block, Free(name=block.name, nbytes=block.nbytes, stream=stream, behind=behind))

    def busy(self, stream: int) -> None:
        """Let a stream be busy for a while."""
        self.steps.append(Signal("busy", stream))
        self.driver.busy(self.subject.handles[stream])

    def go_on(self, stream: int) -> None:
        """Let a busy stream go on."""
        self.steps.append(Signal("go_on", stream))
        self.driver.go_on(self.subject.handles[stream])
        self._agrees()

    def wait(self, stream: int) -> None:
        """Let the host wait for a stream."""
        self.steps.append(Signal("wait", stream))
        self.driver.synchronize(self.subject.handles[stream])
        self._agrees()

    def finish(self) -> None:
        """Let everything go on, compare what was seen, and free everything."""
        self.driver.go_on()
        self._compare_looks()
        super().finish()

    def abandon(self) -> None:
        """Let everything go on and close."""
        self.driver.go_on()
        super().abandon()

    # ------------------------------------------------------------------ what is checked

    def _served(self, step: Malloc, handle: Any) -> Block:
        block = super()._served(replace(step, stamped=False), handle)
        stream = step.stream or 0
        self._users[block.name] = {stream}
        if not block.nbytes:
            return block
        self.checked[Invariant.STREAM_ORDER] += 1
        if self.by == "events":
            late = next(self.driver.late(block.address, block.nbytes, self.subject.handles[stream]), None)
            if late is not None:
                raise self._violation(
                    Invariant.STREAM_ORDER,
                    f"{block.name} was handed out on stream {stream} and is not behind {late}",
                    partial(_ordered_proof, block, stream),
                )
        return block

    def _agrees(self, blamed: Invariant | None = None, before: Mapping[str, Any] | None = None) -> None:
        super()._agrees(blamed, before)
        if self.driver.torn and self.by == "events":
            raise self._violation(
                Invariant.STREAM_ORDER, self.driver.torn[0], lambda _: ["assert not driver.torn"]
            )

    def _compare_looks(self) -> None:
        for name, (number, size, value) in self._looks.items():
            seen = self.driver.seen(number, size)
            if seen != bytes([value]) * len(seen):
                raise self._violation(
                    Invariant.STREAM_ORDER,
                    f"work on {name}, queued before its free, saw {seen.hex(' ', 8)} where {value:02x} was",
                    partial(_seen_proof, name, size, value),
                )

    def _order(self, stream: int, behind: tuple[int, ...]) -> None:
        handles = self.subject.handles
        for each in behind:
            self.driver.order(handles[stream], behind=handles[each])

    def _after_close(self) -> None:
        if self.driver.torn and self.by == "events":
            raise self._violation(
                Invariant.STREAM_ORDER,
                self.driver.torn[0],
                lambda words: [words.hook("close"), "assert not driver.torn"],
            )
        self.driver.release()
        super()._after_close()


def _ordered_proof(block: Block, stream: int, words: Wording) -> list[str]:
    address = words.address(block.name, block.handle)
    return [f"assert driver.is_ordered({address}, {block.nbytes}, {words.handle(stream)})"]


def _seen_proof(name: str, size: int, value: int, words: Wording) -> list[str]:  # noqa: ARG001 - as all proofs
    return [f"seen = driver.seen(seen_{name}, {size})", f"assert seen == bytes([{value}]) * len(seen)"]
