"""What the console script runs: silent about Ctrl-C from its first import on."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from clforge.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
