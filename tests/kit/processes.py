"""What tests that start processes of their own have in common."""

FORKED = "ignore:This process:DeprecationWarning"
"""For ``-W``: what Python says, from 3.12 on, of every fork of a process with threads."""
