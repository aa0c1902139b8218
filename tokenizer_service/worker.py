"""One of several processes that serve on one port, as workers.py starts it: `python -P -m tokenizer_service.worker`.

It listens at once, but is not ready before its standard input says so with a line: then all of its kind are.
"""

from __future__ import annotations

import asyncio
import os
import sys

import structlog
import typer

from service_common.lifecycle import run_service
from service_common.logging import configure_logging
from service_common.options import command
from tokenizer_service.config import TokenizerConfig
from tokenizer_service.process import serve

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@command(TokenizerConfig)
def run(config: TokenizerConfig) -> None:
    """Serve on a port that is held for this process and others."""
    configure_logging(config.log_format, config.log_level)
    structlog.contextvars.bind_contextvars(worker=os.getpid())  # its log is one with the others'
    run_service(lambda: serve(config, opened=_next_line))


async def _next_line() -> None:
    """Returns when a line has come on standard input; never, where none will."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    if not await reader.readline():
        await asyncio.Event().wait()


if __name__ == "__main__":
    app(prog_name="clforge tokenizer")
