"""`serve`, `engine` and `tokenizer`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Never

import typer

from clforge.cli.config import ServeConfig
from engine_service.config import EngineConfig
from service_common.options import command
from tokenizer_service.config import TokenizerConfig

app = typer.Typer()

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
@command(EngineConfig, TokenizerConfig, ServeConfig, without=frozenset({"engine"}))
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


def _become(module: str, arguments: list[str]) -> Never:
    """Makes this process run a service, so that signals and exit codes are the service's own."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])
