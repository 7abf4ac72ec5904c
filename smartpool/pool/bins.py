"""Bins and the table of live blocks: the two structures of the quick path.

A freed block of a small request goes into the *bin* of its exact request size and stream, uncoalesced,
and the next request of that size and stream takes it from there: one dictionary look-up, one `list.pop`
and one dictionary store, each atomic, so the quick path takes no lock. Bins are emptied into the
arena of slabs when a small request finds no bin and no gap, and before the heap grows.

A freed block of a large request goes onto its stream's list of *deferred frees*, one atomic step, too.
The next large request joins what is there with its neighbors before it looks for a gap: keeping large
blocks by size would cost memory (a block stays where it happened to be), and saves little.

The table of live blocks maps a pointer to its bin. Everything that must watch requests (recording,
hooks, the life after `close`) does so by changing the *class* of that table, which is one atomic
store and reaches callers that keep a bound `pool.malloc`; while nothing watches, it costs nothing. The
tables that watch are in `smartpool.telemetry.journal`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from smartpool.tiers import Tier

if TYPE_CHECKING:
    from smartpool.heap.arena import Arena

__all__ = [
    "SHARED_BINS",
    "Bin",
    "ClosedTable",
    "DeferredFrees",
    "DisownedTable",
    "EndedTable",
    "LargeBin",
    "LiveTable",
    "LoneBin",
    "RequestObserver",
    "enter",
]


_pop = dict.pop  # `super()` takes 0.1 us a call more


class RequestObserver(Protocol):
    """Who wants to know of every request and free."""

    def allocated(self, pointer: int, nbytes: int, stream: int) -> None:
        """Learn that a block was handed out."""

    def freed(self, pointer: int, stream: int) -> None:
        """Learn that a block was given back."""


class Bin(list[int]):
    """Free blocks of one request size that were last used on one stream.

    A request first asks whether the bin is true (an exception from an empty `pop` costs 0.2 us), then
    pops. So a subclass whose `pop` finds blocks elsewhere needs a `__bool__` that says so.

    Attributes
    ----------
    nbytes
        Bytes as requested.
    size
        Bytes of the block: `nbytes` rounded up to 512, and at least 512.
    stream
        The stream on which a block of this bin was last used.
    tier
        The tier of `size`.
    others
        Further streams that used a block (`record_stream`). Such a bin belongs to one block.
    quiet
        Whether nothing was freed into the bin since it was last emptied.
    in_heap
        Whether its blocks are the heap's.
    arena
        Where `Arena.allocate` finds a place as the heap would; None where only the heap knows how.
    touched
        Where the bin enters itself when that ends. A free first appends its block and then looks
        at `quiet`; who empties a bin first takes it out of `touched`, then makes it quiet, and then
        empties it. So whatever way the two run side by side, a block is emptied or its bin entered.
    """

    __slots__ = ("arena", "nbytes", "others", "quiet", "size", "stream", "tier", "touched")
    __hash__ = object.__hash__  # type: ignore[assignment]  # bins are places, not values
    in_heap: ClassVar[bool] = True

    def __init__(self, nbytes: int, size: int, stream: int, tier: Tier, touched: set[Bin]) -> None:
        super().__init__()
        self.nbytes = nbytes
        self.size = size
        self.stream = stream
        self.tier = tier
        self.others: tuple[int, ...] = ()
        self.quiet = True
        self.touched = touched
        self.arena: Arena | None = None

    @property
    def home(self) -> Bin:
        """The bin itself, unless it stands for another (`smartpool.steps.stand_ins`)."""
        return self

    def own(self) -> Bin:
        """Return another bin for one of these blocks alone, to be told of further streams."""
        own = Bin(self.nbytes, self.size, self.stream, self.tier, self.touched)
        own.others = self.others
        return own

    def used_elsewhere(self, pointer: int, stream: int) -> bool:  # noqa: ARG002 - planned steps do
        """Learn that another stream uses a live block; return whether nobody else need remember that."""
        return False

    def closing(self, table: LiveTable) -> Bin:
        """Return where one of these blocks is freed into when the pool of `table` is closed."""
        return ClosingBin(self.own(), table)

    def put(self, pointer: int) -> None:
        """Take a block that is free, as the quick path does."""
        self.append(pointer)
        if self.quiet:
            self.quiet = False
            self.touched.add(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<Bin of {self.nbytes} bytes on stream {self.stream}: {len(self)} blocks>"


class DeferredFrees(list[int]):
    """Large blocks that were freed, last used on one stream, and are not joined with their neighbors yet."""

    __slots__ = ("stream",)
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, stream: int) -> None:
        super().__init__()
        self.stream = stream


class LargeBin(Bin):
    """What is known of live blocks of one large request size. Freed ones are deferred, and it stays empty.

    Parameters
    ----------
    nbytes, size, stream, tier, touched
        As `Bin`.
    deferred
        Where a freed block goes.
    """

    __slots__ = ("append",)

    def __init__(  # noqa: PLR0917 - as `Bin`
        self, nbytes: int, size: int, stream: int, tier: Tier, touched: set[Bin], deferred: DeferredFrees
    ) -> None:
        super().__init__(nbytes, size, stream, tier, touched)
        self.quiet = False  # so that a free does not look further
        self.append = deferred.append  # type: ignore[method-assign]  # of the list itself: no call more


SHARED_BINS: Final = (Bin, LargeBin)
"""The classes of bins that stand for all blocks of a size; the others are each of one block."""


class LiveTable(dict[int, Bin]):
    """Pointer to bin, for every live block. Nobody watches."""

    __slots__ = ("journal", "on_empty")

    journal: Any  # who watches, where somebody does: `smartpool.telemetry.journal`
    on_empty: Callable[[], None]
    closed: ClassVar[bool] = False


class ClosedTable(LiveTable):
    """The live table of a closed pool: when the last block goes, the memory goes."""

    __slots__ = ()
    closed = True

    def pop(self, pointer: int) -> Any:  # type: ignore[override]
        """Take a block out, as `dict.pop`, to be freed into a bin that requests do not find."""
        closing = self[pointer].closing(self)  # first: what fails here leaves the block live
        _pop(self, pointer)
        return closing


class DisownedTable(LiveTable):
    """The live table of a pool in a forked child: the memory is the parent's."""

    __slots__ = ()

    def pop(self, pointer: int) -> Any:  # type: ignore[override]
        """Take a block out, as `dict.pop`, to be freed into nothing."""
        bin_ = _pop(self, pointer)
        return Bin(bin_.nbytes, bin_.size, bin_.stream, bin_.tier, set())


class EndedTable(LiveTable):
    """The live table of a pool that is gone: buffers that end in one cycle with it come too late."""

    __slots__ = ()

    def pop(self, pointer: int) -> Any:  # type: ignore[override] # noqa: ARG002
        """Take a block, whichever, to be freed into nothing."""
        return Bin(0, 0, 0, Tier.SMALL, set())


def enter(live: LiveTable, pointer: int, bin_: Bin) -> None:
    """Enter a block as live; it is free again when that raises, as what watches may.

    The quick paths have this written out, and call nothing there: where recursion is too deep for the table's
    own method, it is too deep for every other.
    """
    try:
        live[pointer] = bin_
    except BaseException:
        _pop(live, pointer, None)
        bin_.append(pointer)
        if bin_.quiet:
            bin_.quiet = False
            bin_.touched.add(bin_)
        raise


class LoneBin(Bin):
    """The bin of one block that is not the heap's. It holds nothing, so nobody need empty it."""

    __slots__ = ()
    in_heap = False

    def __init__(self, like: Bin) -> None:
        super().__init__(like.nbytes, like.size, like.stream, like.tier, like.touched)
        self.quiet = False


class ClosingBin(Bin):
    """Where one block of a closed pool is freed into. The last one ends the pool.

    Parameters
    ----------
    own
        The bin of that block alone, which learns what this one is told.
    table
        The pool's.
    """

    __slots__ = ("_own", "_table")

    def __init__(self, own: Bin, table: LiveTable) -> None:
        super().__init__(own.nbytes, own.size, own.stream, own.tier, own.touched)
        self.others = own.others
        self.quiet = False
        self._own = own
        self._table = table

    def append(self, pointer: int) -> None:
        """Take the block, and end the pool when nothing is live any more."""
        own = self._own
        own.others = self.others
        own.append(pointer)
        if own.__class__ is Bin:  # others hold nothing, so nobody need empty them
            own.touched.add(own)
        if not self._table:
            self._table.on_empty()
