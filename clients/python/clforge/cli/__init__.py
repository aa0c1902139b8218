"""The command `clforge`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperOption

from clforge.cli import exit_codes
from clforge.cli.commands import GROUPS
from service_common.errors import StartupError
from service_common.lifecycle import exit_with

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long option names off
    help="Serve GGUF language models over gRPC on any OpenCL device, and use such servers.",
    epilog=f"`clforge --install-completion` has your shell complete commands and options.\n\n{exit_codes.HELP}",
)
for group in GROUPS:
    app.add_typer(group)


def main() -> None:
    """Runs the command of this process's arguments and ends the process; see exit_codes."""
    _open_closed_streams()
    try:
        _command()(prog_name="clforge")
    except StartupError as error:
        exit_with(error)
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)
    except OSError as error:
        # Without this Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else whoever read us has gone
            sys.stderr.write(f"clforge: {error.strerror or error}\n")
        sys.exit(exit_codes.FAILED)


def _command() -> Any:
    """The command line, with the two options that set up completion left out of --help, where commands belong."""
    command = typer.main.get_command(app)
    for option in command.params:
        if isinstance(option, TyperOption) and option.name in ("install_completion", "show_completion"):
            option.hidden = True
    return command


def _open_closed_streams() -> None:
    """Gives standard streams that were closed (`>&-`) a file, since Python makes them None, and a socket that takes a
    closed stream's number would get what is written there."""
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clforge {version('clforge')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None: ...
