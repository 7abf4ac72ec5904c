"""Tiers, streams, defragmentation, prediction and statistics of one device."""
