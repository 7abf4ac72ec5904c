"""Memory that sleeps: chunks of their own for what a tag names, and their contents kept elsewhere."""
