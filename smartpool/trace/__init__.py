"""Recorded allocations: format, recording, importers, replay, baselines."""
