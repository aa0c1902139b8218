"""A service that is imported but does not begin yet: `python -P -m service_common.held_start MODULE ARGUMENTS…`.

Imports are most of a service's start, and need nobody else. It begins, by `main` of MODULE.__main__, when a line comes
on its standard input. If that is closed before, who started it has gone, and so does it.
"""

from __future__ import annotations

import sys
from importlib import import_module

BEGIN = "begin"


def run(module: str) -> None:
    """Imports `module`.__main__, waits, and runs its `main`."""
    main = import_module(f"{module}.__main__").main
    if sys.stdin.readline():
        main()


if __name__ == "__main__":
    run(sys.argv.pop(1))
