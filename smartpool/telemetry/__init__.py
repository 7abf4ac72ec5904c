"""What a pool tells: statistics, tags and scopes, hooks, memory maps, and why memory ran out."""
