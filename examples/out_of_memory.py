"""An out-of-memory error says who holds what, and what would help.

Prints::

    48 MiB by tag 'weights'
    8 MiB by tag 'cache'
    the pool goes on: True
"""

import smartpool

with smartpool.SmartPool("model:1GiB", max_bytes="64MiB", track=True) as pool:
    with pool.tag("weights"):
        weights = pool.allocate(48 << 20)
    with pool.tag("cache"):
        cache = pool.allocate(8 << 20)
    try:
        pool.allocate(16 << 20)
    except smartpool.OutOfMemoryError as error:
        for holder in error.report.holders:
            if holder.kind == "tag":
                print(f"{smartpool.format_size(holder.nbytes)} by tag {holder.name!r}")
    del cache
    pool.allocate(16 << 20)
    print("the pool goes on:", True)
