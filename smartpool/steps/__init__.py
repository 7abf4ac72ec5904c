"""Planned steps: a repetition that is marked is recorded, planned, and served by index."""
