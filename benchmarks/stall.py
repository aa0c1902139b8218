"""How long prompts slow down the tokens of running requests, as a client of the engine service sees them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from benchmarks.report import percentile
from benchmarks.server import Server
from clforge.v1.engine_pb2 import EngineServiceGetModelInfoRequest, GenerateTokensRequest, TokenSubmit
from clforge.v1.engine_pb2_grpc import EngineServiceStub
from clforge.v1.generation_pb2 import GenerationParams, ModelInfo, SamplingParams, StopParams, Update
from engine_service.bench.protocol import BenchError

MILLISECOND = 1e-3


class StallLoad(NamedTuple):
    """Running requests, and the prompts that come in one burst: each as long as the context allows."""

    num_running: int = 4
    running_prompt_len: int = 128
    num_prompts: int = 2
    prompt_len: int = 4000
    idle_seconds: float = 10.0  # before the burst, and as long after it


_LOAD = StallLoad()


class Window(NamedTuple):
    """A stretch of time."""

    start: float
    end: float

    def gaps(self, arrivals: Iterable[list[float]]) -> list[float]:
        """Seconds between neighbouring tokens of a request, of all requests, where both came within the window."""
        within = [[at for at in times if self.start <= at <= self.end] for times in arrivals]
        return [later - earlier for times in within for earlier, later in pairwise(times)]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


class TokenRequest:
    """A request on the stream, and when each of its tokens came."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self.started = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, update: Update, now: float) -> None:
        """Notes an update that came `now`. A token that came in one message with another counts as no later."""
        if update.WhichOneof("event") == "delta":
            self.arrivals += [now] * update.delta.num_tokens
            self.started.set()
        elif update.WhichOneof("event") == "finished" and update.finished.HasField("error"):
            self.ended.set_exception(BenchError(f"a request failed: {update.finished.error.message}"))
        elif update.WhichOneof("event") == "finished":
            self.ended.set_result(None)


class TokenStream:
    """One GenerateTokens stream of greedy requests with random prompts."""

    def __init__(self, call: Any, model: ModelInfo, seed: int) -> None:
        self.model = model
        self._call, self._rng = call, random.Random(seed)
        self._requests: dict[int, TokenRequest] = {}

    async def submit(self, prompt_len: int, max_tokens: int) -> TokenRequest:
        """Starts a request."""
        request_id = len(self._requests) + 1
        request = self._requests[request_id] = TokenRequest()
        submit = TokenSubmit(
            request_id=request_id,
            token_ids=self._rng.choices(range(self.model.vocab_size), k=prompt_len),
            params=GenerationParams(
                sampling=SamplingParams(temperature=0.0),
                stopping=StopParams(max_tokens=max_tokens, ignore_eos=True),
            ),
            vocab_sha256=self.model.vocab_sha256,
        )
        await self._call.write(GenerateTokensRequest(submit=submit))
        return request

    async def read(self) -> None:
        """Passes on what comes, until cancelled."""
        async for response in self._call:
            now = time.perf_counter()
            for update in response.updates:
                self._requests[update.request_id].take(update, now)


def measure(model: Path, seed: int, load: StallLoad = _LOAD) -> dict[str, float]:
    """Inter-token times in ms with and without prompts coming in, and the tokens/s of both sides."""
    with Server.engine(model, f"--max-num-seqs={2 * load.num_running}") as server:
        return asyncio.run(_measure(server.address, seed, load))


async def _measure(address: str, seed: int, load: StallLoad) -> dict[str, float]:
    async with _open(address, seed) as stream:
        alone = await _burst(stream, 1, load)
        room = stream.model.context_length - load.running_prompt_len
        running = [await stream.submit(load.running_prompt_len, room) for _ in range(load.num_running)]
        for request in running:
            await request.started.wait()
        before = await _idle(load)
        busy = await _burst(stream, load.num_prompts, load)
        after = await _idle(load)
        if any(request.ended.done() for request in running):
            raise BenchError(f"a running request ended before {load.num_prompts} prompts were in: give fewer of them")
    arrivals = [request.arrivals for request in running]
    return _figures(before.gaps(arrivals) + after.gaps(arrivals), busy.gaps(arrivals), alone, busy, load)


async def _burst(stream: TokenStream, num_prompts: int, load: StallLoad) -> Window:
    """From the arrival of so many prompts at once to the first token of the last one."""
    started = time.perf_counter()
    prompts = [await stream.submit(load.prompt_len, max_tokens=1) for _ in range(num_prompts)]
    await asyncio.gather(*(prompt.ended for prompt in prompts))
    return Window(started, time.perf_counter())


async def _idle(load: StallLoad) -> Window:
    started = time.perf_counter()
    await asyncio.sleep(load.idle_seconds)
    return Window(started, time.perf_counter())


def _figures(idle: list[float], busy: list[float], alone: Window, burst: Window, load: StallLoad) -> dict[str, float]:
    return {
        "idle_p50_ms": percentile(idle, 50) / MILLISECOND,
        "idle_p99_ms": percentile(idle, 99) / MILLISECOND,
        "busy_p50_ms": percentile(busy, 50) / MILLISECOND,
        "busy_p99_ms": percentile(busy, 99) / MILLISECOND,
        "p99_ratio": percentile(busy, 99) / percentile(idle, 99),
        "decode_tokens_per_s_idle": load.num_running * len(idle) / sum(idle),
        "decode_tokens_per_s_busy": load.num_running * len(busy) / sum(busy),
        "prefill_tokens_per_s_alone": load.prompt_len / alone.seconds,
        "prefill_tokens_per_s_busy": load.num_prompts * load.prompt_len / burst.seconds,
    }


@asynccontextmanager
async def _open(address: str, seed: int) -> AsyncIterator[TokenStream]:
    """A stream; what still runs on it is cancelled at the end of the block."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = EngineServiceStub(channel)
        model = (await stub.GetModelInfo(EngineServiceGetModelInfoRequest())).model_info
        call = stub.GenerateTokens()
        stream = TokenStream(call, model, seed)
        reader = asyncio.create_task(stream.read())
        try:
            yield stream
        finally:
            reader.cancel()
            call.cancel()
