"""Debug mode: guards, poison and quarantine around every block."""
