"""Intervals become offsets: weighted interval-graph colouring. Pure integers."""
