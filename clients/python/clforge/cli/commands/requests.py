"""`status`, `cancel` and `top`: what a running server is busy with."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from clforge.cli.connection import Connection
from clforge.cli.option_groups import Json, with_groups
from service_common.errors import ConfigError

app = typer.Typer()


@app.command()
@with_groups
def status(*, as_json: Json = False, connection: Connection) -> None:
    """Show what a running server serves and is busy with. Its model, its load, and each live request."""
    from clforge.cli import status as command
    from clforge.cli.server import use_running

    sys.exit(use_running(connection, partial(command.status, as_json=as_json)))


@app.command()
@with_groups
def cancel(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Requests, as `clforge status` names them")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Cancel every live request of yours")] = False,
    as_json: Json = False,
    connection: Connection,
) -> None:
    """Cancel requests of a running server. Their readers get what was generated, and learn that it was cancelled."""
    from clforge.cli import status as command
    from clforge.cli.server import use_running

    if bool(ids) == everything:
        raise ConfigError("give either ids of requests, as clforge status shows them, or --all")
    cancelling = partial(command.cancel, global_ids=ids or (), everything=everything, as_json=as_json)
    sys.exit(use_running(connection, cancelling))


@app.command()
@with_groups
def top(
    *,
    interval: Annotated[float, typer.Option(help="Seconds between two looks", min=0.1, max=3600)] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, once")] = False,
    connection: Connection,
) -> None:
    """Watch what a running server is busy with. Requests, KV cache and tokens per second, until q or Ctrl-C. Where
    standard output is no terminal, it is printed once."""
    from clforge.cli import top as command
    from clforge.cli.server import use_running

    sys.exit(use_running(connection, partial(command.top, interval=interval, as_json=as_json)))
