"""Buffers that several processes hold: exported as file descriptors, opened elsewhere."""
