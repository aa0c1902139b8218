"""The tokenizer service as a process: `python -P -m tokenizer_service --engine ADDRESS --grpc ADDRESS`."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import typer

from clforge.v1.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from service_common.addresses import Address, bind, check_exposure, check_target, parse_address, parse_target
from service_common.health import Health
from service_common.lifecycle import EXIT_FAILURE, Shutdown, announce_ready, run_service, serve
from service_common.logging import configure_logging
from service_common.metrics import exposed, metrics_address
from service_common.options import command
from service_common.rpc import make_channel, make_server
from tokenizer_service.chat_encoder import ChatEncoder
from tokenizer_service.config import TokenizerConfig
from tokenizer_service.encoder import Encoder
from tokenizer_service.engine_client import EngineLink
from tokenizer_service.metrics import TokenizerMetrics
from tokenizer_service.server import SERVICE, TokenizerServer
from tokenizer_service.sessions import Sessions


class Readiness:
    """Passes the link's state on to health and metrics, and tells who started this process when it is first up."""

    def __init__(self, health: Health, metrics: TokenizerMetrics) -> None:
        self._health, self._metrics = health, metrics
        self._announced = False
        self.address: Address | None = None

    def __call__(self, ready: bool) -> None:
        self._health.set_ready(ready)
        if ready:
            self._metrics.engine_connected()
        if ready and not self._announced and self.address is not None:
            self._announced = True
            announce_ready(str(self.address))


async def main(config: TokenizerConfig) -> int:
    """Serves until asked to stop; returns the exit code. StartupError when it cannot serve as asked."""
    address, engine = parse_address(config.grpc, "--grpc"), parse_target(config.engine, "--engine")
    check_exposure(address, insecure=config.insecure)
    check_target(engine, insecure=config.insecure)
    scraped_at = metrics_address(config.metrics, "--metrics", insecure=config.insecure)
    server, health, shutdown, encoder = make_server(), Health(SERVICE), Shutdown(), Encoder()
    chat_encoder = ChatEncoder(encoder, max_prompt_bytes=config.max_prompt_bytes)
    metrics = TokenizerMetrics(lambda: health.ready)
    ready = Readiness(health, metrics)
    async with make_channel(engine) as channel:
        link = EngineLink(channel, name=str(engine), on_ready=ready)
        limits = config.max_live_requests, config.max_prompt_bytes
        sessions = Sessions(
            link, encoder, chat_encoder, metrics, max_live_requests=limits[0], max_prompt_bytes=limits[1]
        )
        service = TokenizerServer(link, sessions, encoder, chat_encoder, max_prompt_bytes=config.max_prompt_bytes)
        add_TokenizerServiceServicer_to_server(service, server)
        health.add_to_server(server)
        ready.address = bind(server, address)
        with exposed(metrics.registry, scraped_at):
            await server.start()
            connection = asyncio.create_task(link.run())
            end_early = functools.partial(_end_early, shutdown)
            connection.add_done_callback(end_early)
            await serve(server, health, sessions, shutdown, drain_seconds=config.drain_seconds)
            connection.remove_done_callback(end_early)
            encoder.close()
            await chat_encoder.close()
            connection.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await connection
    return shutdown.exit_code


def _end_early(shutdown: Shutdown, _connection: asyncio.Task[None]) -> None:
    """The link gives up only for good; its error is raised once the service has drained."""
    shutdown.request("the engine link failed", EXIT_FAILURE)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@command(TokenizerConfig)
def run(config: TokenizerConfig) -> None:
    """Serve text generation over gRPC, with the engine at --engine doing the work."""
    configure_logging(config.log_format, config.log_level)
    run_service(lambda: main(config))


if __name__ == "__main__":
    app(prog_name="clforge tokenizer")
