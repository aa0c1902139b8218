"""`make identity`: requests under any load against the same requests alone, on every device layout.

usage: python -m tests.identity [--requests N] [--layout-requests N] [--fresh N] [--seed N]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from service_common.options import command
from tests.identity.check import check_afresh, check_worlds, worlds
from tests.identity.config import IdentityConfig
from tests.identity.report import complaints, summary, table

_FILE_WIDTH = 170  # columns of the table where standard output is no terminal
_MAX_COMPLAINTS = 20
app = typer.Typer(add_completion=False)


@app.command()
@command(IdentityConfig)
def run(config: IdentityConfig) -> None:
    """Compare every request's ids and log-probabilities, bit for bit; exit code 1 where one differs."""
    out = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        todo = worlds(config, Path(folder))
        loaded = progress.add_task("under load, and alone", total=2 * sum(world.num_requests for world in todo))
        results = check_worlds(todo, lambda num: progress.advance(loaded, num))
        fresh = progress.add_task("in fresh processes", total=config.fresh)
        results = check_afresh(results, config.fresh, config.seed, lambda num: progress.advance(fresh, num))
    out.print(table(results))
    found = complaints(results)
    for line in found[:_MAX_COMPLAINTS]:
        out.print(line)
    if len(found) > _MAX_COMPLAINTS:
        out.print(f"… and {len(found) - _MAX_COMPLAINTS} more")
    out.print(summary(results))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    app()
