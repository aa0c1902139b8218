"""What the console script runs: silent about Ctrl-C from its first import on, and gRPC's own lines with it."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line."""
    # gRPC's C code would write of each failed handshake, beside the one line that tells a user what is wrong.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from clforge.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
