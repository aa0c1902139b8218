"""Engine and tokenizer as two processes of a test's own, so that it can look into, and kill, each of them."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from clforge.v1 import engine_pb2, generation_pb2, tokenizer_pb2
from clforge.v1.engine_pb2_grpc import EngineServiceStub
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from tests.integration.served import CLFORGE, address_of, environment

if TYPE_CHECKING:
    from clforge.v1.engine_pb2_grpc import EngineServiceAsyncStub
    from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub

IDLE_SECONDS = 10.0  # far more than a step and a round trip, for machines that are busy with something else


@dataclass(frozen=True)
class Processes:
    """Both services, each with its address."""

    engine: subprocess.Popen[str]
    tokenizer: subprocess.Popen[str]
    engine_address: str
    address: str

    @asynccontextmanager
    async def stubs(self) -> AsyncIterator[Stubs]:
        """Connections of this event loop to both."""
        async with (
            grpc.aio.insecure_channel(self.engine_address) as engine,
            grpc.aio.insecure_channel(self.address) as tokenizer,
        ):
            yield Stubs(EngineServiceStub(engine), TokenizerServiceStub(tokenizer))


@dataclass(frozen=True)
class Stubs:
    """Generated stubs of both services."""

    engine: EngineServiceAsyncStub
    tokenizer: TokenizerServiceAsyncStub

    async def load(self) -> generation_pb2.Load:
        """The engine's load now."""
        return (await self.engine.GetLoad(engine_pb2.GetLoadRequest())).load

    async def requests(self) -> list[generation_pb2.RequestInfo]:
        """The live requests, as the tokenizer tells them."""
        return list((await self.tokenizer.ListRequests(tokenizer_pb2.ListRequestsRequest())).requests)

    async def vocab_sha256(self) -> str:
        """The name of the vocabulary that the engine serves."""
        answer = await self.engine.GetModelInfo(engine_pb2.EngineServiceGetModelInfoRequest())
        return answer.model_info.vocab_sha256

    async def until_live(self, *global_ids: str, seconds: float = IDLE_SECONDS) -> float:
        """Waits until exactly these requests are live, and blocks are in use only if any is; returns the seconds."""
        started = time.monotonic()
        while True:
            requests, load = await self.requests(), await self.load()
            live = {request.global_id for request in requests}
            blocks = sum(request.num_blocks for request in requests)
            counted = load.num_requests_running + load.num_requests_waiting + load.num_requests_paused
            if live == set(global_ids) and counted == len(live) and (live or not load.num_used_blocks):
                return time.monotonic() - started
            assert time.monotonic() - started < seconds, f"still live: {requests}, {blocks} blocks; {load}"
            await asyncio.sleep(0.005)


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [*CLFORGE, *arguments, "--log-level", "warning"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd="/"
    )


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`clforge` with `arguments`; killed at the end of the block where it is still there."""
    started = _start(*arguments)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@contextmanager
def two_processes(model: Path, *engine_options: str, tokenizer_options: tuple[str, ...] = ()) -> Iterator[Processes]:
    """An engine and a tokenizer, both on free ports and ready."""
    with process("engine", "--model", str(model), "--engine", "127.0.0.1:0", *engine_options) as engine:
        engine_address = address_of(engine)
        with process("tokenizer", "--engine", engine_address, "--grpc", "127.0.0.1:0", *tokenizer_options) as tokenizer:
            yield Processes(engine, tokenizer, engine_address, address_of(tokenizer))
