"""Blocks, gaps and arenas: bookkeeping of address ranges. Pure integers."""
