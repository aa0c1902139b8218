"""The server that a command which generates uses: one that runs, or a private one that ends with the command."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clforge.cli import exit_codes
from clforge.cli.connection import Connection
from clforge.client import DEFAULT_TARGET, Client
from clforge.errors import ClforgeError
from engine_service.bundled import BUNDLED_MODEL
from engine_service.config import EngineConfig
from service_common.errors import ConfigError
from service_common.logging import LogLevel

if TYPE_CHECKING:
    from clforge.cli.local_server import LocalServer

_PROBE_SECONDS = 5.0  # loopback answers at once, if only with a refusal

_PRIVATE = ("--model", "--device", "--threads")

Use = Callable[[Client], Coroutine[Any, Any, int]]


@dataclass(frozen=True, kw_only=True)
class Server(Connection):
    """What was said of the server. Nothing: the one at the default address, if one listens there, or else a private
    one with the bundled model."""

    target: Annotated[
        str | None,
        typer.Option(
            help=f"Use the server at this address; default: {DEFAULT_TARGET}, if one listens there", metavar="ADDRESS"
        ),
    ] = None
    model: Annotated[
        Path | None,
        typer.Option(
            help="Start a private server with this GGUF file; default, without a server: the bundled clforge-tiny",
            metavar="FILE",
        ),
    ] = None
    device: Annotated[
        int | None,
        typer.Option(help="Start a private server on this OpenCL device; default: 0 of `clforge devices`", min=0),
    ] = None
    threads: Annotated[
        int | None, typer.Option(help="Start a private server with so many CPU threads; default: the quota", min=1)
    ] = None

    def run(self, use: Use, *, verbose: bool) -> int:
        """Runs `use` with a client of the server and returns its exit code, or that of what went wrong. SIGINT and
        SIGTERM cancel it. `verbose`: a private server's log is shown. ConfigError for options that exclude each other.
        """
        private = [option for option in self.options if option in _PRIVATE]
        running = [option for option in self.options if option not in _PRIVATE]
        if running and private:
            raise ConfigError(f"{running[0]} and {private[0]} exclude each other: a running server, or a private one")
        if running or (not private and _is_listening(DEFAULT_TARGET)):
            return use_running(self, use)
        if not private:
            sys.stderr.write(
                f"clforge: no server at {DEFAULT_TARGET}; starting one with the bundled {BUNDLED_MODEL.stem}\n"
            )
        return interruptible(_serve(self._engine_config(verbose), use))

    def _engine_config(self, verbose: bool) -> EngineConfig:
        level = LogLevel.INFO if verbose else LogLevel.WARNING
        return EngineConfig(
            model=self.model or BUNDLED_MODEL, device=self.device or 0, threads=self.threads, log_level=level
        )


def interruptible(main: Coroutine[Any, Any, int]) -> int:
    """Runs `main` in a new event loop; returns its exit code, or INTERRUPTED after SIGINT or SIGTERM."""

    async def with_signals() -> int:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # asyncio's own handler, which cancels us
        return await main

    try:
        return asyncio.run(with_signals())
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _is_listening(target: str) -> bool:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def use_running(connection: Connection, use: Use) -> int:
    """Runs `use` with a client of a running server and returns the exit code, as `Server.run` does."""
    return interruptible(connected(connection, use))


async def connected(connection: Connection, use: Use) -> int:
    """Runs `use` with a client and returns its exit code, or that of an error that it raised, told in one line."""
    try:
        async with connection.client() as client:
            return await use(client)
    except ClforgeError as error:
        return exit_codes.report(error)


async def _serve(engine: EngineConfig, use: Use) -> int:
    from clforge.cli.local_server import ServerFailed, local_server

    try:
        async with local_server(engine) as server:
            target = await _load(server, engine.model.name)
            return await server.while_alive(connected(Connection(target=target), use))
    except ServerFailed as failure:
        failure.print()
        return failure.exit_code


async def _load(server: LocalServer, name: str) -> str:
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(f"starting a server with {name}") as status:  # on terminals only
        return await server.start(lambda progress: status.update(f"{name}: {progress}"))
