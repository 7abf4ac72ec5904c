"""Offsets for buffers whose lifetimes are known: a graph, a compiled model, an arena of your own.

Prints::

    250 bytes in all, 200 at once
    weights at 0
    input at 100
    hidden at 150
    output at 100
    proved optimal: True
"""

from smartpool import IntervalSet, plan

names = ["weights", "input", "hidden", "output"]
intervals = IntervalSet(start=[0, 0, 1, 2], end=[4, 2, 3, 4], size=[100, 50, 50, 50])
placed = plan(intervals)
print(f"{sum(intervals.size)} bytes in all, {placed.height} at once")
for name, offset in zip(names, placed.offsets.tolist(), strict=True):
    print(name, "at", offset)
print("proved optimal:", placed.proved_optimal)
