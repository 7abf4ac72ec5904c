"""The testing kit attacks an allocator of yours, and shows the shortest program that breaks it.

Prints::

    no overlap
    pool = BumpAllocator()
    a = pool.malloc(1)
    b = pool.malloc(1)
    assert b + 1 <= a or a + 1 <= b
"""

from smartpool.testing import ViolationError, check_allocator


class BumpAllocator:
    """Hands out one byte after the other, and counts wrong for requests of one byte."""

    def __init__(self) -> None:
        self.used = 0

    def malloc(self, nbytes: int) -> int:
        """Return the next address."""
        address, self.used = 4096 + self.used, self.used + nbytes // 2 * 2
        return address

    def free(self, address: int) -> None:
        """Forget it."""


try:
    check_allocator(BumpAllocator, bad_frees="undefined", bad_sizes="undefined", zero_size="undefined")
except ViolationError as error:
    print(error.invariant)
    print(error.program.source.replace("factory", "BumpAllocator").partition("\n\n")[2].strip())
