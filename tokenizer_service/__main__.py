"""The tokenizer service from the command line: `python -P -m tokenizer_service --engine ADDRESS --grpc ADDRESS`."""

from __future__ import annotations

import typer

from service_common.lifecycle import run_service
from service_common.logging import configure_logging
from service_common.options import command
from tokenizer_service import process, workers
from tokenizer_service.config import TokenizerConfig

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@command(TokenizerConfig)
def run(config: TokenizerConfig) -> None:
    """Serve text generation over gRPC, with the engine at --engine doing the work."""
    configure_logging(config.log_format, config.log_level)
    run_service(lambda: process.serve(config) if config.workers == 1 else workers.serve(config))


def main() -> None:
    """Runs the command line."""
    app(prog_name="clforge tokenizer")


if __name__ == "__main__":
    main()
