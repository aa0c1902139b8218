"""What the exit codes of `clforge` mean; the same for every command, and shown by --help."""

from __future__ import annotations

import sys

from clforge.errors import ConnectionLostError, UnreachableError

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130

HELP = (
    "Exit codes: 0 done; 1 a request, a check or a server failed; 2 wrong usage, or cannot start as asked; "
    "3 no connection to the server; 130 interrupted."
)


def report(error: Exception) -> int:
    """Tells the user of a request's failure, in a line on standard error; returns the exit code that it means."""
    sys.stderr.write(f"clforge: {error}\n")
    return UNREACHABLE if isinstance(error, UnreachableError | ConnectionLostError) else FAILED
