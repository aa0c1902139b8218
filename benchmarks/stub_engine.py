"""An engine without a model: it answers with ready-made tokens, as fast as credit allows or at a steady pace.

Like the engine it sends one message a step, with a delta of each request that may go on. A process of its own, which
says `ready ADDRESS`.

usage: python -m benchmarks.stub_engine --grpc ADDRESS --model FILE [--step-seconds S]
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import typer

from benchmarks.config import StubConfig
from clforge.v1 import engine_pb2 as pb
from clforge.v1.engine_pb2_grpc import EngineServiceServicer, add_EngineServiceServicer_to_server
from clforge.v1.generation_pb2 import FINISH_REASON_LENGTH, Accepted, Delta, Finished, ModelInfo, Update
from service_common.addresses import parse_address
from service_common.gguf_reader import GGUFReader
from service_common.lifecycle import announce_ready, run_service
from service_common.options import command
from service_common.rpc import make_server
from service_common.tokenizer_file import tokenizer_file, vocab_sha256
from tokenizer_service.vocabulary import Vocabulary

NANOSECONDS = 10**9
_TEXT = "The sun rose over a quiet town, and people began to walk along its narrow streets. "
_PIECE_BYTES = 1 << 20


@dataclass
class _Request:
    """A live request: what it may still be given, and how much it has got."""

    id: int
    credit: int
    max_tokens: int
    num_tokens: int = 0


class StubEngine(EngineServiceServicer):
    """Every request gets the same text over and over, until its max_tokens."""

    def __init__(self, config: StubConfig) -> None:
        with GGUFReader(config.model) as reader:
            self._data = tokenizer_file(reader)
            vocabulary = Vocabulary.from_gguf(reader)
        self._sha256 = vocab_sha256(self._data)
        self._vocab_size = vocabulary.size
        self._deltas = [Delta(token_ids=[id_], num_tokens=1) for id_ in vocabulary.encode(_TEXT, add_special=False)]
        self._step_ns = round(config.step_seconds * NANOSECONDS)

    async def GenerateTokens(
        self, request_iterator: AsyncIterator[pb.GenerateTokensRequest], context: Any
    ) -> AsyncIterator[pb.GenerateTokensResponse]:
        stream = _Stream(self._deltas, self._step_ns)
        reader = asyncio.create_task(stream.read(request_iterator))
        context.add_done_callback(lambda _: reader.cancel())
        async for updates in stream.steps():
            yield pb.GenerateTokensResponse(updates=updates)

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[pb.GetTokenizerResponse]:
        for start in range(0, len(self._data), _PIECE_BYTES):
            part = self._data[start : start + _PIECE_BYTES]
            yield pb.GetTokenizerResponse(data=part, vocab_sha256=self._sha256, total_bytes=len(self._data))

    async def GetModelInfo(self, request: Any, context: Any) -> pb.EngineServiceGetModelInfoResponse:
        info = ModelInfo(
            name="stub", vocab_size=self._vocab_size, vocab_sha256=self._sha256, version=version("clforge")
        )
        return pb.EngineServiceGetModelInfoResponse(model_info=info)


class _Stream:
    """One client's requests. At a pace a request's token number n, from 0, is due n steps after the time, by the
    system's monotonic clock in nanoseconds, that Accepted has as its seed."""

    def __init__(self, deltas: list[Delta], step_ns: int) -> None:
        self._deltas, self._step_ns = deltas, step_ns
        self._live: dict[int, _Request] = {}
        self._new: list[Update] = []
        self._changed = asyncio.Event()

    async def read(self, messages: AsyncIterator[pb.GenerateTokensRequest]) -> None:
        """Takes what the client says."""
        async for message in messages:
            match message.WhichOneof("message"):
                case "submit":
                    self._submit(message.submit)
                case "credit" if message.credit.request_id in self._live:
                    self._live[message.credit.request_id].credit += message.credit.tokens
                case "cancel":
                    self._live.pop(message.cancel.request_id, None)
            self._changed.set()

    async def steps(self) -> AsyncIterator[list[Update]]:
        """What each step brings, without end. At a pace no step is left out: one that is late is followed at once."""
        origin = time.monotonic_ns()
        for number in itertools.count(1):
            due = origin + number * self._step_ns
            if self._step_ns:
                await asyncio.sleep(max(0, due - time.monotonic_ns()) / NANOSECONDS)
            if updates := self._step(due):
                yield updates
            elif not self._step_ns:
                self._changed.clear()
                await self._changed.wait()

    def _submit(self, submit: pb.TokenSubmit) -> None:
        params = submit.params
        max_tokens = params.stopping.max_tokens
        credit = params.initial_credit if params.HasField("initial_credit") else max_tokens
        self._live[submit.request_id] = _Request(submit.request_id, credit, max_tokens)

    def _step(self, due: int) -> list[Update]:
        updates = []
        for request in list(self._live.values()):
            if request.num_tokens == 0:
                accepted = Accepted(global_id=f"{request.id:032x}", seed=due)
                updates.append(Update(request_id=request.id, accepted=accepted))
            if request.credit > request.num_tokens:
                delta = self._deltas[request.num_tokens % len(self._deltas)]
                updates.append(Update(request_id=request.id, delta=delta))
                request.num_tokens += 1
            if request.num_tokens == request.max_tokens:
                del self._live[request.id]
                updates.append(Update(request_id=request.id, finished=Finished(reason=FINISH_REASON_LENGTH)))
        return updates


async def main(config: StubConfig) -> int:
    """Serves until it is killed."""
    server = make_server()
    add_EngineServiceServicer_to_server(StubEngine(config), server)  # type: ignore[abstract]  # the rest is never asked
    server.add_insecure_port(parse_address(config.grpc, "--grpc").target)
    await server.start()
    announce_ready(config.grpc)
    await server.wait_for_termination()
    return 0


app = typer.Typer(add_completion=False)


@app.command()
@command(StubConfig)
def run(config: StubConfig) -> None:
    """Serve ready-made tokens over gRPC."""
    run_service(lambda: main(config))


if __name__ == "__main__":
    app()
