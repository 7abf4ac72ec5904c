"""The memory under a pool: where blocks lie, what is mapped, and what that costs."""
