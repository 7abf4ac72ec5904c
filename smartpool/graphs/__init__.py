"""CUDA graphs: memory whose addresses a capture has baked in."""
