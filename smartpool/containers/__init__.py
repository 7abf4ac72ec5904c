"""Structures of pure integers that know nothing of memory."""
