"""The faces of a pool, each an idea of its own; `SmartPool` is all of them."""
