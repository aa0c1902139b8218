"""`clforge generate`: one generation; its text to standard output, everything else to standard error."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from clforge.cli import exit_codes
from clforge.cli.connection import Connection
from clforge.cli.local_server import ServerFailed, local_server
from clforge.client import DEFAULT_TARGET
from clforge.errors import ClforgeError
from clforge.events import Delta, Event, Finished, FinishReason, Section
from clforge.params import Params, Prompt
from engine_service.bundled import BUNDLED_MODEL
from engine_service.config import EngineConfig
from service_common.errors import ConfigError
from service_common.logging import LogLevel

_PROBE_SECONDS = 5.0  # loopback answers at once, if only with a refusal


@dataclass(frozen=True)
class Generation:
    """What to generate and how to show it. `as_json` prints one event a line; `summary` tells of speed and end."""

    prompt: Prompt
    params: Params
    as_json: bool
    summary: bool


@dataclass(frozen=True)
class PrivateServer:
    """What was said of a server of our own: nothing, where all is None. `verbose`: its log is shown."""

    model: Path | None
    device: int | None
    threads: int | None
    verbose: bool

    @property
    def options(self) -> list[str]:
        """The options by which one was asked for."""
        given = {"--model": self.model, "--device": self.device, "--threads": self.threads}
        return [name for name, value in given.items() if value is not None]

    def engine_config(self) -> EngineConfig:
        """The engine's part of it."""
        level = LogLevel.INFO if self.verbose else LogLevel.WARNING
        return EngineConfig(
            model=self.model or BUNDLED_MODEL, device=self.device or 0, threads=self.threads, log_level=level
        )


def run(generation: Generation, connection: Connection, private: PrivateServer) -> int:
    """Generates at the server of `connection`, on the private server that was asked for, at the default address if one
    listens there, or else on a private server with the bundled model. Returns the exit code; ConfigError for options
    that exclude each other.
    """
    if connection.options and private.options:
        raise ConfigError(
            f"{connection.options[0]} and {private.options[0]} exclude each other: a running server, or a private one"
        )
    if not private.options:
        if connection.options or _is_listening(DEFAULT_TARGET):
            return _interruptible(_generate(connection, generation))
        sys.stderr.write(
            f"clforge: no server at {DEFAULT_TARGET}; starting one with the bundled {BUNDLED_MODEL.stem}\n"
        )
    return _interruptible(_serve_and_generate(private.engine_config(), generation))


def _is_listening(target: str) -> bool:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _interruptible(generating: Coroutine[Any, Any, int]) -> int:
    async def with_signals() -> int:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # asyncio's own handler, which cancels us
        return await generating

    try:
        return asyncio.run(with_signals())
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


async def _serve_and_generate(engine: EngineConfig, generation: Generation) -> int:
    try:
        async with local_server(engine) as server:
            with Console(stderr=True).status(f"loading {engine.model.name}"):  # shown on terminals only
                target = await server.start()
            return await server.while_alive(_generate(Connection(target=target), generation))
    except ServerFailed as failure:
        failure.print()
        return failure.exit_code


async def _generate(connection: Connection, generation: Generation) -> int:
    try:
        async with connection.client() as client:
            events = client.generate(generation.prompt, **generation.params)
            async with aclosing(events):
                return await _show(events, generation)
    except ClforgeError as error:
        return exit_codes.report(error)


async def _show(events: AsyncIterator[Event], generation: Generation) -> int:
    """Prints the events of one choice as they come; returns the exit code that its end means."""
    end: Finished | None = None
    try:
        async for event in events:
            if generation.as_json:
                _print(json.dumps({"event": type(event).__name__.lower(), **asdict(event)}, ensure_ascii=False) + "\n")
            elif isinstance(event, Delta):
                _print_delta(event)
            if isinstance(event, Finished):
                end = event
    finally:
        if sys.stdout.isatty() and not generation.as_json:
            _print("\n")
    assert end is not None  # the client raises when a stream ends without it
    if generation.summary:
        sys.stderr.write(summary(end) + "\n")
    if end.reason in (FinishReason.STOP, FinishReason.LENGTH):
        return exit_codes.OK
    sys.stderr.write(f"clforge: the request ended early: {end.reason}\n")
    return exit_codes.FAILED


def summary(end: Finished) -> str:
    """One line on how much was generated, how fast, and why it ended."""
    usage, timings = end.usage, end.timings
    parts = [f"{usage.generated_tokens} tokens"]
    if usage.generated_tokens > 1 and timings.decode_seconds > 0:
        parts.append(f"{(usage.generated_tokens - 1) / timings.decode_seconds:.1f} tokens/s")
    computed = usage.prompt_tokens - usage.cached_tokens
    parts.append(f"prompt {usage.prompt_tokens} tokens ({computed} computed) in {timings.prefill_seconds:.2f} s")
    matched = "" if end.matched_stop is None else f" ({end.matched_stop!r})"
    return "; ".join([*parts, f"ended by {end.reason}{matched}"])


def _print_delta(delta: Delta) -> None:
    """Reasoning and its marks go to standard error, dim on a terminal, all else to standard output."""
    if delta.section in (Section.REASONING, Section.MARK):
        Console(stderr=True, soft_wrap=True).print(Text(delta.text, "dim"), end="")
    else:
        _print(delta.text)


def _print(text: str) -> None:
    """Writes at once, as UTF-8 whatever the locale says: a stream of tokens is to be seen as it comes."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
