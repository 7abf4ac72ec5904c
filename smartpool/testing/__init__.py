"""The kit that tests allocators: strategies, state machine, faults."""
