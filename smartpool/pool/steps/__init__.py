"""Planned steps: what repeats itself is recognised, planned, and served by index."""
