"""Streams opened and cancelled by the ten thousand, and what they leave in the memory of both processes.

`python -m benchmarks.cancelled_streams` serves the bundled model as a user would and cancels each stream at one of
three moments: when its request is sent, when it is accepted, when its first text has come. Memory is measured when
requests are no longer new to the processes, and at the end.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import typer

from benchmarks.config import CancelledStreamsConfig
from benchmarks.server import PROCESSES, Server
from clforge.v1 import tokenizer_pb2
from clforge.v1.generation_pb2 import GenerationParams, StopParams
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from engine_service.bundled import BUNDLED_MODEL
from service_common.errors import ConfigError
from service_common.options import command

MEBIBYTE = 1 << 20
MAX_GROWTH_MIB = 8.0
SETTLE_SECONDS = 2.0  # for the last cancels to reach the engine


class Moment(Enum):
    """When a stream is cancelled."""

    SENT = 0
    ACCEPTED = 1
    DELTA = 2


class Sample(NamedTuple):
    """Resident bytes of each process after so many streams, and the seconds since the sample before."""

    num_streams: int
    rss_bytes: Mapping[str, int]
    seconds: float


def measure(model: Path, counts: Sequence[int], concurrency: int) -> Iterator[Sample]:
    """Cancels as many streams as the largest of the ascending `counts`, and gives a sample at each of them."""
    with Server.whole(model) as server:
        done = 0
        for count in counts:
            started = time.monotonic()
            asyncio.run(cancel_streams(server.address, count - done, concurrency))
            seconds = time.monotonic() - started
            time.sleep(SETTLE_SECONDS)
            done = count
            yield Sample(count, server.rss_bytes(), seconds)


def growth_mib(samples: Sequence[Sample], process: str) -> float:
    """By how much the process has grown from the first sample to the last."""
    return (samples[-1].rss_bytes[process] - samples[0].rss_bytes[process]) / MEBIBYTE


async def cancel_streams(address: str, num_streams: int, concurrency: int) -> None:
    """Opens and cancels so many streams at the tokenizer at `address`, `concurrency` at a time, on one connection."""
    moments = cycle(Moment)
    remaining = iter(range(num_streams))

    async def cancel_each(stub: Any, mine: Iterator[int]) -> None:
        for _ in mine:
            await cancel_stream(stub, next(moments))

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(cancel_each(TokenizerServiceStub(channel), remaining))


async def cancel_stream(stub: Any, moment: Moment) -> None:
    """Opens a stream with one request and cancels it at the moment; returns when it has ended."""
    call = stub.GenerateText()
    params = GenerationParams(stopping=StopParams(ignore_eos=True))
    submit = tokenizer_pb2.TextSubmit(request_id=1, prompt=tokenizer_pb2.Prompt(text="the rain"), params=params)
    await call.write(tokenizer_pb2.GenerateTextRequest(submit=submit))
    wanted = {Moment.SENT: None, Moment.ACCEPTED: "accepted", Moment.DELTA: "delta"}[moment]
    seen = {None}
    while wanted not in seen:
        response = await call.read()
        seen |= {update.WhichOneof("event") for update in response.updates}
    call.cancel()
    await call.code()


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@command(CancelledStreamsConfig)
def run(config: CancelledStreamsConfig) -> None:
    """Open and cancel streams, telling memory on the way; exit code 1 where a process has grown by more than 8 MiB."""
    if config.warm_streams >= config.streams:
        raise ConfigError(f"--warm-streams: {config.warm_streams} must be below --streams, which is {config.streams}")
    counts = [*range(config.warm_streams, config.streams, config.warm_streams), config.streams]
    samples = []
    for sample in measure(config.model or BUNDLED_MODEL, counts, config.concurrency):
        samples.append(sample)
        memory = ", ".join(f"{name} {sample.rss_bytes[name] / MEBIBYTE:.1f} MiB" for name in PROCESSES)
        print(f"{sample.num_streams} streams cancelled: {memory}", flush=True)
    rate = (samples[-1].num_streams - samples[0].num_streams) / sum(sample.seconds for sample in samples[1:])
    growth = {name: growth_mib(samples, name) for name in PROCESSES}
    shown = ", ".join(f"{name} {mib:+.1f} MiB" for name, mib in growth.items())
    print(f"growth since the {samples[0].num_streams}th: {shown}; {rate:.0f} streams/s")
    sys.exit(max(growth.values()) > MAX_GROWTH_MIB)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.cancelled_streams")
