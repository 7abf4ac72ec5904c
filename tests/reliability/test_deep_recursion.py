"""A request where recursion is nearly too deep: it is served, or refused, and no block is lost either way.

Tables that are watched are Python, and a `RecursionError` comes out of them before their first line.
"""

import pytest

from smartpool import MiB, SmartPool, SmartPoolConfig
from smartpool.errors import SmartPoolError

WATCHED = {
    "nobody": (SmartPoolConfig(), False),
    "tracked": (SmartPoolConfig(track=True), False),
    "stacks": (SmartPoolConfig(stack_depth=8), False),
    "recorded": (SmartPoolConfig(record=True), False),
    "hooked": (SmartPoolConfig(), True),
    "hooked and tracked": (SmartPoolConfig(track=True), True),
    "without pooling": (SmartPoolConfig(track=True, enable_advanced_pooling=False), True),
}
CALLS = {
    "malloc": lambda pool, _: pool.malloc(3000),
    "malloc on a stream": lambda pool, stream: pool.malloc(3000, stream),
    "allocate": lambda pool, _: pool.allocate(3000),
    "empty": lambda pool, _: pool.empty(3000, "uint8"),
    "malloc, searching": lambda pool, _: pool.malloc(5 * MiB),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("watched", WATCHED)
def test_a_recursion_error_loses_no_block(watched, call):
    config, hooked = WATCHED[watched]
    pool = SmartPool("model:64MiB", config)
    (manager,) = pool.managers
    stream = manager.driver.create_stream()
    if hooked:
        pool.hooks.on_allocate(lambda event: None)
        pool.hooks.on_free(lambda event: None)

    def deep(levels):
        return deep(levels - 1) if levels else CALLS[call](pool, stream)

    def give_back(block):
        pool.free(block) if isinstance(block, int) else block.free()

    give_back(deep(0))
    served, refused = 0, 0
    level = 700
    while refused < 60:
        try:
            block = deep(level)
        except RecursionError:
            refused += 1
        else:
            served += 1
            give_back(block)
        level += 1
    assert served
    assert manager.live_blocks() == {}
    if config.track and watched != "without pooling":
        assert manager.snapshot().tracked.total.current_blocks == 0
    manager.flush()
    pool.check()
    pool.trim(wait=True)
    assert manager.reserved_bytes == 0
    pool.close()


def test_a_free_in_deep_recursion_can_be_repeated():
    """With a block that is live as before, or told that it is free."""
    pool = SmartPool("model:64MiB", SmartPoolConfig(track=True))

    def deep(levels, pointer):
        return deep(levels - 1, pointer) if levels else pool.free(pointer)

    refused = 0
    level = 700
    while refused < 60:
        pointer = pool.malloc(3000)
        try:
            deep(level, pointer)
        except RecursionError:
            refused += 1
            if pool.managers[0].owns(pointer):
                pool.free(pointer)
        level += 1
    pool.check()
    pool.trim(wait=True)
    assert pool.managers[0].reserved_bytes == 0
    pool.close()


@pytest.mark.parametrize("watched", ["nobody", "tracked"])
def test_the_last_free_of_a_closed_pool_in_deep_recursion(watched):
    for level in range(900, 1000):
        pool = SmartPool("model:64MiB", WATCHED[watched][0])
        (manager,) = pool.managers
        pointer = pool.malloc(3000)
        pool.close()

        def deep(levels, pointer=pointer, pool=pool):
            return deep(levels - 1) if levels else pool.free(pointer)

        try:
            deep(level)
        except RecursionError:
            if manager.owns(pointer):
                pool.free(pointer)
            else:
                with pytest.raises(SmartPoolError):
                    pool.free(pointer)
                pool.close()
        assert manager.reserved_bytes == 0
