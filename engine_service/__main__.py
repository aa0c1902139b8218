"""The engine process: `python -P -m engine_service`."""

from __future__ import annotations

import typer

from engine_service.config import EngineConfig
from engine_service.process import serve
from service_common import lifecycle
from service_common.logging import configure_logging
from service_common.options import command

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@command(EngineConfig)
def run(config: EngineConfig) -> None:
    """Serve a GGUF model: token ids in, token ids out."""
    configure_logging(config.log_format, config.log_level)
    lifecycle.run_service(lambda: serve(config))


if __name__ == "__main__":
    app(prog_name="clforge engine")
