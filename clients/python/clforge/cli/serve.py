"""`clforge serve`: both processes, one ready line, one way to stop them."""

from __future__ import annotations

import asyncio
from typing import Never

from clforge.cli import exit_codes
from clforge.cli.local_server import LocalServer, ServerFailed, local_server
from engine_service.config import EngineConfig
from service_common.addresses import check_bindable
from service_common.errors import ConfigError
from service_common.lifecycle import Shutdown, announce_ready, run_service
from service_common.logging import configure_logging
from service_common.metrics import metrics_address, metrics_addresses
from tokenizer_service.config import TokenizerConfig


def run(engine: EngineConfig, tokenizer: TokenizerConfig) -> Never:
    """Serves until a signal or a child's end, then ends this process."""
    configure_logging(tokenizer.log_format, tokenizer.log_level)
    run_service(lambda: serve(engine, tokenizer))


async def serve(engine: EngineConfig, tokenizer: TokenizerConfig) -> int:
    """Serves until a signal or a child's end; returns the exit code. ConfigError for an address that cannot be used."""
    _check_metrics(engine, tokenizer)
    shutdown = Shutdown()
    with shutdown.on_signals():
        async with local_server(engine, tokenizer) as server:
            hurrying = asyncio.create_task(_hurry(server, shutdown))
            try:
                await _until_requested(server, shutdown)
                code = exit_codes.OK
            except ServerFailed as failure:
                failure.print()
                code = failure.exit_code
        hurrying.cancel()
    return exit_codes.FAILED if code == exit_codes.OK and server.had_to_kill else code


def _check_metrics(engine: EngineConfig, tokenizer: TokenizerConfig) -> None:
    """Refuses addresses under the names that their options have here; the tokenizer itself only knows --metrics."""
    engine_address = metrics_address(engine.metrics, "--metrics", insecure=engine.insecure)
    option, workers = "--tokenizer-metrics", tokenizer.workers
    for address in metrics_addresses(tokenizer.metrics, option, workers, insecure=tokenizer.insecure):
        if engine_address is not None and address.port and str(address) == str(engine_address):
            raise ConfigError(f"--metrics and {option} are both {address}; each needs a port of its own")
        check_bindable(address)


async def _until_requested(server: LocalServer, shutdown: Shutdown) -> None:
    """Starts the server and lets it serve. Raises ServerFailed when a child ends."""
    requested, serving = asyncio.create_task(shutdown.requested()), asyncio.create_task(_serve(server))
    await asyncio.wait([requested, serving], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        requested.cancel()
        await serving
    serving.cancel()


async def _serve(server: LocalServer) -> None:
    announce_ready(await server.start())
    await server.while_alive(asyncio.Event().wait())


async def _hurry(server: LocalServer, shutdown: Shutdown) -> None:
    await shutdown.hurried()
    server.hurry()
