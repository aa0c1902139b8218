"""`clforge top`: a server's load as it changes, until q or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Never

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from clforge.cli import exit_codes
from clforge.cli.request_table import kv_line, output, request_table, requests_line
from clforge.cli.status import load_as_json
from clforge.client import Client
from clforge.errors import ClforgeError
from clforge.events import ModelInfo
from clforge.load import Load, RequestInfo
from service_common.terminal import printable

_QUIT_KEYS = b"qQ\x04"


@dataclass(frozen=True)
class Sample:
    """What a server said at one moment of this process's monotonic clock."""

    seconds: float
    load: Load
    requests: tuple[RequestInfo, ...]


@dataclass(frozen=True)
class Rates:
    """Tokens per second between two samples; None, and no entry, where there is nothing to compare."""

    prompt: float | None
    generation: float | None
    by_request: Mapping[str, float]


async def top(client: Client, *, interval: float, as_json: bool) -> int:
    """Shows the load each `interval` seconds; as JSON, or where standard output is no terminal, once, with the rates of
    one interval. Returns the exit code. A server that goes away while it is watched is waited for."""
    model, before = await client.model_info(), await take(client)
    if as_json or not sys.stdout.isatty():
        await asyncio.sleep(interval)
        now = await take(client)
        _print_once(model, now, rates(before, now), as_json=as_json)
        return exit_codes.OK
    with _quit_keys() as quitting, Live(console=output(), screen=True, auto_refresh=False) as live:
        watching = asyncio.ensure_future(_watch(client, live, model, before, interval))
        leaving = asyncio.ensure_future(quitting.wait())
        try:
            await asyncio.wait([watching, leaving], return_when=asyncio.FIRST_COMPLETED)
            return exit_codes.OK if leaving.done() else await watching
        finally:
            watching.cancel()
            leaving.cancel()


async def _watch(client: Client, live: Live, model: ModelInfo, before: Sample, interval: float) -> Never:
    now, problem = before, ""
    while True:
        footer = Text(f"\n{printable(problem)}" if problem else "", "red").append("\nq quits", "dim")
        live.update(Group(view(model, now, rates(before, now)), footer), refresh=True)
        await asyncio.sleep(interval)
        try:
            before, now, problem = now, await take(client), ""
        except ClforgeError as error:
            problem = str(error)


async def take(client: Client) -> Sample:
    """A sample of the client's server."""
    load, requests = await asyncio.gather(client.load(), client.list_requests())
    return Sample(time.monotonic(), load, requests)


def rates(before: Sample, now: Sample) -> Rates:
    """The rates between two samples. A figure that fell belongs to another engine: it was started anew."""
    seconds = now.seconds - before.seconds

    def rate(earlier: int, later: int) -> float | None:
        return (later - earlier) / seconds if seconds > 0 and later >= earlier else None

    known = {info.global_id: info.num_generated_tokens for info in before.requests}
    by_request = {
        info.global_id: each
        for info in now.requests
        if (each := rate(known.get(info.global_id, sys.maxsize), info.num_generated_tokens)) is not None
    }
    return Rates(
        rate(before.load.prompt_tokens, now.load.prompt_tokens),
        rate(before.load.generation_tokens, now.load.generation_tokens),
        by_request,
    )


def view(model: ModelInfo, sample: Sample, rates: Rates) -> RenderableType:
    """What is shown of a sample."""
    requests: list[RenderableType] = []
    if sample.requests:
        requests = [Text(), request_table(sample.requests, rates.by_request)]
    return Group(
        Text(printable(f"{model.name} on {model.device}"), style="bold", no_wrap=True, overflow="ellipsis"),
        Text(f"requests  {requests_line(sample.load)}"),
        Text(f"KV cache  {kv_line(sample.load)}"),
        Text(f"speed     {_per_second(rates.generation)} generated, {_per_second(rates.prompt)} of prompts"),
        *requests,
    )


def _per_second(rate: float | None) -> str:
    return "- tokens/s" if rate is None else f"{rate:.1f} tokens/s"


def _print_once(model: ModelInfo, sample: Sample, rates: Rates, *, as_json: bool) -> None:
    if not as_json:
        output().print(view(model, sample, rates))
        return
    speed = {"prompt_tokens_per_second": rates.prompt, "generation_tokens_per_second": rates.generation}
    requests = [{**asdict(info), "tokens_per_second": rates.by_request.get(info.global_id)} for info in sample.requests]
    typer.echo(json.dumps({"model": model.name, **speed, "load": load_as_json(sample.load), "requests": requests}))


@contextlib.contextmanager
def _quit_keys() -> Iterator[asyncio.Event]:
    """An event that a key sets, without Enter, while the block runs; never where standard input is no terminal."""
    quitting = asyncio.Event()
    if not sys.stdin.isatty():
        yield quitting
        return
    descriptor = sys.stdin.fileno()
    settings = termios.tcgetattr(descriptor)
    event_loop = asyncio.get_running_loop()

    def pressed() -> None:
        if set(os.read(descriptor, 64)) & set(_QUIT_KEYS):
            quitting.set()

    tty.setcbreak(descriptor)
    event_loop.add_reader(descriptor, pressed)
    try:
        yield quitting
    finally:
        event_loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
