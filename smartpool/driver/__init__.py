"""The thing that owns memory: the protocol, and the cpu, model and cuda devices."""
