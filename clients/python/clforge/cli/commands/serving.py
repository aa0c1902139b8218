"""`serve`, `engine`, `tokenizer` and `keys`: what runs a server, and whom it lets in."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Never

import typer

from clforge.cli.config import ServeConfig
from engine_service.config import EngineConfig
from service_common.options import command
from tokenizer_service.config import TokenizerConfig

app = typer.Typer()

_LINK_OPTIONS = frozenset(  # those of the two services' private socket
    {"engine"} | {field.name for field in fields(TokenizerConfig) if field.name.startswith("engine_")}
)
_KEYS_EXAMPLES = """Examples:

\b
  (umask 077; clforge keys alice --file keys.toml > alice.key)
  clforge serve --api-keys keys.toml
  clforge generate -p 'Once upon a time' --target 127.0.0.1:50051 --api-key-file alice.key
"""
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
@command(EngineConfig, TokenizerConfig, ServeConfig, without=_LINK_OPTIONS)
def serve(engine: EngineConfig, tokenizer: TokenizerConfig, own: ServeConfig) -> None:
    """Serve a GGUF model: engine and tokenizer, until a signal. Prints `ready ADDRESS` once requests can be served."""
    from clforge.cli.serve import run

    run(engine, replace(tokenizer, metrics=own.tokenizer_metrics))


@app.command(context_settings=_PASS_ON)
def engine(context: typer.Context) -> None:
    """Run the engine alone; --help shows its options."""
    _become("engine_service", context.args)


@app.command(context_settings=_PASS_ON)
def tokenizer(context: typer.Context) -> None:
    """Run the tokenizer service alone; --help shows its options."""
    _become("tokenizer_service", context.args)


@app.command(epilog=_KEYS_EXAMPLES)
def keys(
    name: Annotated[str, typer.Argument(help="Whose key: 1 to 64 letters, digits, - and _", metavar="NAME")],
    file: Annotated[
        Path | None,
        typer.Option(help="Add the key's entry to this file of --api-keys; default: show it", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help='Print {"name": ..., "key": ..., "entry": ...}')] = False,
) -> None:
    """Make an API key. The key goes to standard output, this once: servers keep only its hash. What the file of
    `clforge serve --api-keys` needs to know of it goes to standard error, or with --file there; in its table `expires`,
    `max_requests`, `max_waiting_tokens`, `max_priority` and `default_priority` may follow. A server reads the file
    again when it changes; a key whose table is gone is revoked."""
    from clforge.cli.key_file import add_key

    sys.exit(add_key(name, file, as_json=as_json))


def _become(module: str, arguments: list[str]) -> Never:
    """Makes this process run a service, so that signals and exit codes are the service's own."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])
