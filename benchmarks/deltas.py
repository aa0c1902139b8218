"""What the tokenizer service costs per delta: many GenerateText streams against an engine that has its tokens ready.

The same streams straight to that engine tell what gRPC and this client make of it without a tokenizer between.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from benchmarks.report import percentile
from benchmarks.server import Server
from benchmarks.stub_engine import NANOSECONDS
from clforge.v1.engine_pb2 import EngineServiceGetModelInfoRequest, GenerateTokensRequest, TokenSubmit
from clforge.v1.engine_pb2_grpc import EngineServiceStub
from clforge.v1.generation_pb2 import Credit, GenerationParams, StopParams, Update
from clforge.v1.tokenizer_pb2 import GenerateTextRequest, Prompt, TextSubmit, TokenIds
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from engine_service.bench.protocol import BenchError

MILLISECOND_NS = 10**6
_ENDLESS = (1 << 31) - 1


class DeltaLoad(NamedTuple):
    """How many streams, each with one request, and for how long they are counted."""

    stream_counts: tuple[int, ...] = (1, 16, 256)
    warm_up_seconds: float = 1.0
    seconds: float = 4.0
    window_tokens: int = 256  # credit of a request, renewed as in our clients
    step_seconds: float = 0.1  # of the paced engine: ten tokens a second for each request


_LOAD = DeltaLoad()


class Tally:
    """What all streams were told while it counts, and the processor time that the server took meanwhile.

    Delays are in nanoseconds, of the system's monotonic clock.
    """

    def __init__(self, step_seconds: float) -> None:
        self._step_ns = round(step_seconds * NANOSECONDS)
        self.counts = False
        self.num_deltas = self.num_tokens = 0
        self.cpu_seconds = 0.0
        self.delays_ns: list[int] = []

    @property
    def cpu_us_per_delta(self) -> float:
        """Microseconds of processor time for each delta that arrived."""
        return self.cpu_seconds / max(self.num_deltas, 1) * 1e6

    def take(self, update: Update, first_due_ns: int, num_before: int) -> None:
        """A delta came, after `num_before` tokens of its request."""
        if not self.counts:
            return
        num_tokens = update.delta.num_tokens
        self.num_deltas += 1
        self.num_tokens += num_tokens
        if self._step_ns:
            now = time.monotonic_ns()
            due = range(num_before, num_before + num_tokens)
            self.delays_ns += [now - first_due_ns - number * self._step_ns for number in due]


class Door(NamedTuple):
    """Where streams to `server` are opened: `submit` and `credit` make the messages of its protocol."""

    server: Server
    open: Any
    submit: Any
    credit: Any


def measure(model: Path, load: DeltaLoad = _LOAD) -> dict[str, float]:
    """Deltas/s, processor time per token and delays, by number of streams; `raw` straight from the engine."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_streams in load.stream_counts:
            with _servers(Path(folder), model, 0.0) as (engine, tokenizer):
                figures |= asyncio.run(_rates(engine, tokenizer, num_streams, load))
            with _servers(Path(folder), model, load.step_seconds) as (engine, tokenizer):
                figures |= asyncio.run(_delays(engine, tokenizer, num_streams, load))
    return figures


@contextlib.contextmanager
def _servers(folder: Path, model: Path, step_seconds: float) -> Iterator[tuple[Server, Server]]:
    engine_address = f"unix:{folder}/engine"
    with (
        Server.stub_engine(engine_address, model, step_seconds=step_seconds) as engine,
        Server.tokenizer(f"unix:{folder}/door", engine_address) as tokenizer,
    ):
        yield engine, tokenizer


async def _rates(engine: Server, tokenizer: Server, num_streams: int, load: DeltaLoad) -> dict[str, float]:
    async with _engine_door(engine) as door:
        raw = await _run(door, num_streams, load, 0.0)
    async with _text_door(tokenizer) as door:
        tally = await _run(door, num_streams, load, 0.0)
    return {
        f"deltas_per_s_{num_streams}": tally.num_deltas / load.seconds,
        f"raw_deltas_per_s_{num_streams}": raw.num_deltas / load.seconds,
        f"cpu_us_per_delta_{num_streams}": tally.cpu_us_per_delta,
        f"raw_cpu_us_per_delta_{num_streams}": raw.cpu_us_per_delta,
    }


async def _delays(engine: Server, tokenizer: Server, num_streams: int, load: DeltaLoad) -> dict[str, float]:
    async with _engine_door(engine) as door:
        raw = await _run(door, num_streams, load, load.step_seconds)
    async with _text_door(tokenizer) as door:
        tally = await _run(door, num_streams, load, load.step_seconds)
    if not (raw.delays_ns and tally.delays_ns):
        raise BenchError(f"no token came within {load.seconds:g} s")
    figures = {}
    for percent in (50, 99):
        delay, raw_delay = percentile(tally.delays_ns, percent), percentile(raw.delays_ns, percent)
        figures[f"added_p{percent}_ms_{num_streams}"] = (delay - raw_delay) / MILLISECOND_NS
        figures[f"raw_p{percent}_ms_{num_streams}"] = raw_delay / MILLISECOND_NS
    return figures


async def _run(door: Door, num_streams: int, load: DeltaLoad, step_seconds: float) -> Tally:
    tally = Tally(step_seconds)
    streams = [asyncio.create_task(_stream(door, tally, load.window_tokens)) for _ in range(num_streams)]
    try:
        await asyncio.sleep(load.warm_up_seconds)
        tally.counts, busy = True, door.server.cpu_seconds()
        await asyncio.sleep(load.seconds)
        tally.counts, tally.cpu_seconds = False, door.server.cpu_seconds() - busy
        for stream in streams:
            if stream.done():
                stream.result()
                raise BenchError("a stream ended before its time")
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    return tally


async def _stream(door: Door, tally: Tally, window: int) -> None:
    """One request on a stream of its own, until cancelled. Half a window of credit is granted when it was used."""
    call = door.open()
    first_due_ns = num_tokens = num_granted = 0
    params = GenerationParams(stopping=StopParams(max_tokens=_ENDLESS, ignore_eos=True), initial_credit=window)
    await call.write(door.submit(params))
    async for response in call:
        for update in response.updates:
            if update.HasField("delta"):
                tally.take(update, first_due_ns, num_tokens)
                num_tokens += update.delta.num_tokens
            elif update.HasField("accepted"):
                first_due_ns = update.accepted.seed
            else:
                raise BenchError(f"a request ended: {update.finished}")
        if num_tokens - num_granted >= window // 2:
            await call.write(door.credit(Credit(request_id=1, tokens=num_tokens - num_granted)))
            num_granted = num_tokens


@contextlib.asynccontextmanager
async def _engine_door(server: Server) -> AsyncIterator[Door]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = EngineServiceStub(channel)
        info = (await stub.GetModelInfo(EngineServiceGetModelInfoRequest())).model_info
        submit = TokenSubmit(request_id=1, token_ids=[1], vocab_sha256=info.vocab_sha256)
        yield Door(
            server,
            stub.GenerateTokens,
            lambda params: GenerateTokensRequest(submit=_with(submit, params)),
            lambda credit: GenerateTokensRequest(credit=credit),
        )


@contextlib.asynccontextmanager
async def _text_door(server: Server) -> AsyncIterator[Door]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        submit = TextSubmit(request_id=1, prompt=Prompt(token_ids=TokenIds(ids=[1])))
        yield Door(
            server,
            TokenizerServiceStub(channel).GenerateText,
            lambda params: GenerateTextRequest(submit=_with(submit, params)),
            lambda credit: GenerateTextRequest(credit=credit),
        )


def _with(submit: Any, params: GenerationParams) -> Any:
    submit.params.CopyFrom(params)
    return submit
