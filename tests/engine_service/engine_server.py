"""An engine service in the test's own process, with a runner that needs no device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as SequenceOf
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from clforge.v1 import engine_pb2 as pb
from clforge.v1.engine_pb2_grpc import EngineServiceStub, add_EngineServiceServicer_to_server
from clforge.v1.generation_pb2 import Update
from engine_service.constraints.compiler import GrammarCompiler
from engine_service.constraints.token_bytes import TokenBytes
from engine_service.engine import Engine, EngineEvent
from engine_service.engine_loop import EngineLoop
from engine_service.metrics import EngineMetrics
from engine_service.request_registry import RequestRegistry
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.messages import ScheduledChunk, ScheduledStep
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.scheduler import Scheduler, SchedulerConfig
from engine_service.served_model import ServedModel
from engine_service.server import EngineServer, Loading, Serving, TokenizerFile
from engine_service.token_search import TokenSearch
from service_common import rpc

if TYPE_CHECKING:
    from clforge.v1.engine_pb2_grpc import EngineServiceAsyncStub

VOCAB_SIZE = 100
EOG_ID = 2
NUM_BLOCKS = 64
CONTEXT_LENGTH = 256
SHA256 = "ab" * 32


@dataclass
class FakeRunner:
    """Token n of a choice is 10 + n mod 80, a constrained one's the lowest that is allowed.

    Steps wait while `gate` is closed, and for `delay_seconds`."""

    gate: threading.Event = field(default_factory=threading.Event)
    delay_seconds: float = 0.001
    failures: list[Exception] = field(default_factory=list)
    num_steps: int = 0
    is_closed: bool = False

    def run(self, step: ScheduledStep) -> SequenceOf[SampledToken]:
        self.gate.wait()
        self.num_steps += 1
        threading.Event().wait(self.delay_seconds)
        if self.failures:
            raise self.failures.pop()
        return [SampledToken(_token_id(chunk, row), None, ()) for chunk in step.chunks for row in range(chunk.num_rows)]

    def close(self) -> None:
        self.is_closed = True


def _token_id(chunk: ScheduledChunk, row: int) -> int:
    if chunk.constraint is None:
        return 10 + (chunk.sequence.num_generated + row) % 80
    mask = chunk.constraint.masks(chunk.draft_ids)[row]
    return int(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[0])


def token_bytes() -> TokenBytes:
    """The vocabulary: printable ASCII from id 3 on."""
    texts = [b"", b"", b"", *(bytes([32 + index]) for index in range(95))]
    return TokenBytes(texts + [b""] * (VOCAB_SIZE - len(texts)), [0, 1, EOG_ID], [EOG_ID])


@dataclass
class RunningEngine:
    """What a test may look at and take hold of."""

    stub: EngineServiceAsyncStub
    server: EngineServer
    registry: RequestRegistry
    metrics: EngineMetrics
    loop: EngineLoop
    runner: FakeRunner
    scheduler: Scheduler

    async def integrity(self) -> None:
        """Raises where the scheduler's invariants are broken."""
        await asyncio.wrap_future(self.loop.query(lambda engine: engine.scheduler.check_integrity()))

    async def until_empty(self, seconds: float = 5.0) -> None:
        """Waits until no table holds a request and every KV block is free; fails if that takes longer."""
        async with asyncio.timeout(seconds):
            while True:
                load = await asyncio.wrap_future(self.loop.query(lambda engine: engine.scheduler.stats()))
                live = load.num_requests_running + load.num_requests_waiting + load.num_requests_paused
                if not (live or load.blocks.num_used_blocks or len(self.registry)):
                    return await self.integrity()
                await asyncio.sleep(0.01)


@asynccontextmanager
async def engine_server(**limits: Any) -> AsyncIterator[RunningEngine]:
    """A served engine on a free port; `limits` are those of SchedulerConfig."""
    runner = FakeRunner()
    runner.gate.set()
    config = SchedulerConfig(**{"context_length": CONTEXT_LENGTH, "max_num_seqs": 8} | limits)
    scheduler = Scheduler(config, BlockManager(NUM_BLOCKS, 16), eog_token_ids=frozenset({EOG_ID}))
    event_loop = asyncio.get_running_loop()

    def deliver(events: SequenceOf[EngineEvent]) -> None:
        _post(event_loop, registry.deliver, events)
        servicer.load_feed.changed()

    def stepped(step: ScheduledStep) -> None:
        metrics.step_done(step)
        servicer.load_feed.changed()

    loop = EngineLoop(lambda: Engine(scheduler, runner, on_step=stepped), deliver)
    metrics = EngineMetrics(loop, lambda: True)
    model = ServedModel(
        name="fake",
        architecture="llama",
        vocab_size=VOCAB_SIZE,
        context_length=CONTEXT_LENGTH,
        trained_context_length=CONTEXT_LENGTH,
        eog_token_ids=(EOG_ID,),
        vocab_sha256=SHA256,
        numerics_id="test",
        weight_bytes=1,
        num_parameters=1,
        device="none",
        token_search=TokenSearch([b"%d" % token_id for token_id in range(VOCAB_SIZE)]),
    )
    grammars = GrammarCompiler(token_bytes)
    registry = RequestRegistry(loop, model, metrics, grammars)
    metrics.model_loaded(model)
    servicer = EngineServer(TokenizerFile(b"GGUF" * 1000, SHA256), loop, Loading(), Serving(model, registry))
    server = rpc.make_server()
    add_EngineServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield RunningEngine(EngineServiceStub(channel), servicer, registry, metrics, loop, runner, scheduler)
        finally:
            runner.gate.set()
            await server.stop(None)
            await asyncio.to_thread(loop.close)
            await asyncio.to_thread(grammars.close)


def _post(event_loop: asyncio.AbstractEventLoop, callback: Callable[[Any], None], events: Any) -> None:
    if not event_loop.is_closed():
        event_loop.call_soon_threadsafe(callback, events)


def submit(request_id: int, prompt_length: int = 5, max_tokens: int = 10, **params: Any) -> pb.GenerateTokensRequest:
    """A submit of a prompt of that length; `params` are fields of GenerationParams."""
    message = pb.GenerateTokensRequest()
    message.submit.request_id = request_id
    message.submit.token_ids.extend(3 + index % 90 for index in range(prompt_length))
    message.submit.vocab_sha256 = SHA256
    message.submit.params.stopping.max_tokens = max_tokens
    for name, value in params.items():
        setattr(message.submit.params, name, value)
    return message


def credit(request_id: int, tokens: int) -> pb.GenerateTokensRequest:
    """A grant."""
    message = pb.GenerateTokensRequest()
    message.credit.request_id, message.credit.tokens = request_id, tokens
    return message


def cancel(request_id: int) -> pb.GenerateTokensRequest:
    """A cancellation."""
    message = pb.GenerateTokensRequest()
    message.cancel.request_id = request_id
    return message


def stop(request_id: int, choice: int, num_delivered_tokens: int) -> pb.GenerateTokensRequest:
    """An end of one choice."""
    message = pb.GenerateTokensRequest()
    message.stop.request_id, message.stop.choice = request_id, choice
    message.stop.num_delivered_tokens = num_delivered_tokens
    return message


async def updates_of(call: Any) -> AsyncIterator[Update]:
    """The updates of a stream, one by one."""
    async for response in call:
        for update in response.updates:
            yield update
