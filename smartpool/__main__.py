"""``python -m smartpool`` is the command ``smartpool``."""

from __future__ import annotations

import sys

from smartpool.cli import main

if __name__ == "__main__":
    sys.exit(main())
