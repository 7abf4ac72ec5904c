"""One allocator beside the naive model of it: everything that is done goes through here and is checked.

The model is a table of live blocks with their addresses and sizes, nothing more. A session notes each step
as a value, so that a violation can show the program that led to it, and run it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from smartpool.errors import DriverError
from smartpool.testing.checks import Checks
from smartpool.testing.contract import Hook
from smartpool.testing.invariants import Invariant
from smartpool.testing.steps import BadFree, BadSize, Block, Call, Fault, Free, Malloc, Record, Upkeep

__all__ = ["Session"]


class Session(Checks):
    """A fresh allocator under a contract; every method does something to it and checks everything.

    Parameters
    ----------
    contract
        How to make the allocator, and what it promises.
    stamp
        Write into blocks, and look whether it stays there.

    Attributes
    ----------
    live, gone, dead
        Blocks by name: those that are live, those that were freed, and of these the ones whose address nobody
        has now.
    steps
        What was done so far.
    stamps
        Whether blocks that are served from now on are stamped.
    checked
        How often each invariant was checked.

    Raises
    ------
    ViolationError
        From every method, when an invariant is broken.

    Examples
    --------
    >>> from smartpool.testing import Contract
    >>> from smartpool import AdvancedMemoryPoolManager
    >>> contract = Contract(factory=AdvancedMemoryPoolManager, driver="model:4MiB", close="close")
    >>> session = Session(contract)
    >>> session.free(session.malloc(100))
    >>> session.finish()
    >>> session.checked["no overlap"], session.checked["no leak"]
    (2, 1)
    """

    # ------------------------------------------------------------------ requests

    def malloc(self, nbytes: int, *, stream: int | None = None, alignment: int | None = None) -> Block | None:
        """Ask for a block, on the stream of that number; None when the request is refused."""
        step = Malloc(name="_", number=0, nbytes=nbytes, stream=stream, alignment=alignment)
        caught: tuple[type[BaseException], ...] = (Exception, *self._allowed())
        before = self._figures()
        try:
            handle = self._ask(nbytes, stream, alignment)
        except caught as error:
            expected = nbytes == 0 and self.contract.zero_size == "refused"
            if expected or isinstance(error, self._allowed()):
                self._refused(replace(step, refused=True), before, error)
                return None
            self.steps.append(replace(step, name="block"))
            raise self._violation(
                Invariant.ERRORS,
                f"a request of {nbytes} bytes raised {error!r}; declared are {_class_names(self._errors)}",
            ) from error
        return self._served(replace(step, name=next(self._names), number=next(self._numbers)), handle)

    def malloc_bad(self, size: object) -> None:
        """Ask for a size that is negative or no number; it must be refused."""
        step, before = BadSize(size), self._figures()
        self.steps.append(step)
        self.checked[Invariant.BAD_SIZE] += 1
        try:
            self.subject.malloc(size)
        except Exception:  # noqa: BLE001 - any error is a refusal
            self._agrees(Invariant.BAD_SIZE, before)
        else:
            raise self._violation(Invariant.BAD_SIZE, f"a request of {size!r} bytes was served")

    # ------------------------------------------------------------------ frees

    def free(self, block: Block | None, *, stream: int | None = None) -> None:
        """Free a live block; with `stream`, as used there last."""
        if block is not None:
            self._look_at(block, edges=False)
            self._release(block, Free(name=block.name, nbytes=block.nbytes, stream=stream))

    def _release(self, block: Block, step: Free) -> None:
        stream = step.stream
        self.steps.append(step)
        self.checked[Invariant.ERRORS] += 1
        try:
            self.subject.free(block.handle, block.nbytes, stream)
        except Exception as error:
            if self._faulty and isinstance(error, DriverError):
                self._agrees()
                return
            raise self._violation(
                Invariant.ERRORS, f"the free of the live block {block.name} raised {error!r}"
            ) from error
        del self.live[block.name]
        self.gone[block.name] = block
        if block.nbytes:
            self.dead[block.name] = block
        self._agrees()

    def free_again(self, block: Block) -> None:
        """Free a block that was freed already, and whose address nobody has now."""
        self._free_badly(block, Invariant.DOUBLE_FREE, 0, f"{block.name} was freed a second time")

    def is_foreign(self, address: int) -> bool:
        """Return whether no live block begins at `address`."""
        return all(block.address != address for block in self.live.values())

    def free_foreign(self, block: Block, offset: int) -> None:
        """Free an address that is `offset` bytes beside a block's."""
        self._free_badly(
            block, Invariant.FOREIGN_FREE, offset, f"{block.name} + {offset} is no block and was freed"
        )

    # ------------------------------------------------------------------ everything else

    def upkeep(self, name: str) -> None:
        """Do one of the contract's further operations, which must change no live block."""
        step = Upkeep(name=name)
        try:
            self._hook(self.contract.upkeep[name])()
        except Exception as error:
            if not isinstance(error, self._allowed()):
                self.steps.append(step)
                raise self._violation(Invariant.ERRORS, f"{name} raised {error!r}") from error
            step = replace(step, failed=True)
        self.steps.append(step)
        self._agrees()

    def record_stream(self, block: Block, stream: int) -> None:
        """Say that a further stream uses a live block, by the contract's hook."""
        self.steps.append(Record(name=block.name, stream=stream))
        assert self.contract.record_stream is not None, "the contract says how"
        try:
            self._hook(self.contract.record_stream)(block.handle, self.subject.streams[stream])
        except Exception as error:
            if not isinstance(error, self._allowed()):
                raise self._violation(Invariant.ERRORS, f"record_stream raised {error!r}") from error
            self.steps.pop()
        self._agrees()

    def script_fault(self, call: str, nth: int) -> None:
        """Let the `nth` driver call of that name from now fail."""
        self._faulty = True
        self.driver.faults.fail(call, nth=nth)
        self.steps.append(Fault(call, nth))

    def call(self, source: str, function: Callable[[], Any]) -> Any:
        """Do something of the caller's own that must change no live block; `source` says it in Python."""
        self.steps.append(Call(source, function))
        result = function()
        self._agrees()
        return result

    def finish(self) -> None:
        """Free everything; then everything must be there again. The session is over."""
        if self.driver is not None and self._faulty:
            self.driver.faults.clear()
            self._faulty = False
        for block in list(self.live.values()):
            self.free(block)
        self.checked[Invariant.NO_LEAK] += 1
        self._refill()
        self._give_back()
        self._close()

    def abandon(self) -> None:
        """Close the allocator in the middle of anything; whatever that raises is dropped."""
        for block in self.live.values():
            with suppress(Exception):
                self.subject.free(block.handle, block.nbytes)
        if self.contract.close is not None:
            with suppress(Exception):
                self._hook(self.contract.close)()
        if self.driver is not None:
            with suppress(Exception):
                self._close_driver()

    # ------------------------------------------------------------------ what is checked

    def _ask(self, nbytes: int, stream: int | None, alignment: int | None) -> Any:
        if alignment is None:
            return self.subject.malloc(nbytes, stream)
        assert self.contract.malloc_aligned is not None, "the contract says how"
        named = {} if stream is None else {"stream": self.subject.streams[stream]}
        return self._hook(self.contract.malloc_aligned)(nbytes, alignment, **named)

    def _served(self, step: Malloc, handle: Any) -> Block:
        contract, nbytes = self.contract, step.nbytes
        self.steps.append(step)
        self.checked[Invariant.ERRORS] += 1
        if nbytes == 0:
            self.checked[Invariant.ZERO_SIZE] += 1
            if contract.zero_size == "refused":
                raise self._violation(Invariant.ZERO_SIZE, "a request of no bytes was served")
        address = self._address(handle, nbytes)
        block = Block(step.name, step.number, handle, address, nbytes, step.stream, stamped=False)
        self._well_placed(block, step)
        self.live[block.name] = block
        self._no_longer_dead(block)
        if self._largest is None or nbytes > self._largest.nbytes:
            self._largest = step
        if self.stamps and nbytes and self._memory.reaches(handle):
            self.steps[-1] = replace(step, stamped=True)
            self._write(block)
        self._agrees()
        return block

    def _refused(self, step: Malloc, before: Mapping[str, Any], error: BaseException) -> None:
        self.steps.append(step)
        sizes = [block.nbytes for block in self.live.values()]
        must = self.contract.must_serve
        if must is not None and not self._faulty:
            self.checked[Invariant.SERVED] += 1
            if must(sizes, max(step.nbytes, step.alignment or 0)):
                self.steps[-1] = replace(step, name="block", refused=False)
                raise self._violation(
                    Invariant.SERVED,
                    f"a request of {step.nbytes} bytes beside {sum(sizes)} live was refused: {error!r}",
                )
        self.checked[Invariant.FAILURE] += 1
        self._agrees(Invariant.FAILURE, before)

    def _free_badly(self, block: Block, invariant: Invariant, offset: int, detail: str) -> None:
        step = BadFree(name=block.name, nbytes=block.nbytes, offset=offset)
        before = self._figures()
        self.checked[invariant] += 1
        try:
            self.subject.free(block.handle + offset if offset else block.handle, block.nbytes)
        except Exception:  # noqa: BLE001 - any error is a refusal
            self.steps.append(step)
        else:
            self.steps.append(replace(step, refused=self.contract.bad_frees == "refused"))
            if self.contract.bad_frees == "refused":
                raise self._violation(invariant, detail)
        self._agrees(invariant, before)

    def _refill(self) -> None:
        if not self.contract.refill:
            return
        whole = self._whole()
        if whole:
            wanted, known = Malloc(name="again", number=0, nbytes=whole), "which a fresh allocator serves"
        elif self._largest is not None:
            wanted, known = replace(self._largest, name="again", stamped=False), "which were served before"
        else:
            return
        try:
            handle = self._ask(wanted.nbytes, wanted.stream, wanted.alignment)
        except Exception as error:
            raise self._violation(
                Invariant.NO_LEAK,
                f"nothing is live, and {wanted.nbytes} bytes, {known}, are refused: {error!r}",
                wanted.lines,
            ) from error
        self.free(self._served(replace(wanted, name=next(self._names), number=next(self._numbers)), handle))

    def _whole(self) -> int:
        """Return the largest request that a fresh allocator serves, 0 where that is unknown; asked once."""
        capacity, learned = self.contract.capacity, self.contract.learned
        if capacity is not None and "whole" not in learned:
            learned["whole"] = 0  # also where a fresh one serves nothing of the kind
            low, high = 0, capacity + 1
            while high - low > 1:
                middle = high - 1 if low == 0 and high == capacity + 1 else (low + high) // 2
                low, high = (middle, high) if self._fresh_serves(middle) else (low, middle)
            learned["whole"] = low
        return learned.get("whole", 0)

    def _fresh_serves(self, nbytes: int) -> bool:
        fresh = Session(self.contract, stamp=False)
        try:
            block = fresh.subject.malloc(nbytes)
        except Exception:  # noqa: BLE001 - whatever it is, it was not served
            return False
        else:
            with suppress(Exception):
                fresh.subject.free(block, nbytes)
            return True
        finally:
            fresh.abandon()

    def _give_back(self) -> None:
        if self.contract.trim is None:
            return
        self._works("trim", self.contract.trim)
        self._agrees()
        reserved = self._figures().get("reserved_bytes")
        if self._baseline is not None and reserved != self._baseline:
            figure = self._figure_proof(f"figures['reserved_bytes'] == {self._baseline}")
            raise self._violation(
                Invariant.NO_LEAK,
                f"nothing is live, and trim leaves {reserved} bytes reserved, {self._baseline} at the start",
                lambda words: [words.hook("trim"), *figure(words)],
            )

    def _close(self) -> None:
        if self.contract.close is not None:
            self._works("close", self.contract.close)
        self._after_close()
        if self.driver is not None:
            self._close_driver()

    def _works(self, name: str, hook: Hook) -> None:
        try:
            self._hook(hook)()
        except Exception as error:
            raise self._violation(
                Invariant.ERRORS, f"{name} raised {error!r}", lambda words: [words.hook(name)]
            ) from error

    def _close_driver(self) -> None:
        if isinstance(self.contract.streams, int):
            for handle in self.subject.handles[1:]:
                self.driver.destroy_stream(handle)
        self.driver.close()

    def _after_close(self) -> None:
        if self.driver is None or self.contract.close is None:
            return
        held = {name: count for name, count in self.driver.held().items() if count}
        if held:
            raise self._violation(
                Invariant.NO_LEAK,
                f"the closed allocator still holds of the driver: {held}",
                lambda words: [words.hook("close"), "assert not any(driver.held().values())"],
            )

    # ------------------------------------------------------------------ inside

    def _no_longer_dead(self, block: Block) -> None:
        end = block.address + max(block.nbytes, 1)
        for name, other in list(self.dead.items()):
            if block.address <= other.address < end:
                del self.dead[name]


def _class_names(classes: tuple[type[BaseException], ...]) -> str:
    return ", ".join(each.__name__ for each in classes)
