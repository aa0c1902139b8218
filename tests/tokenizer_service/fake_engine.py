"""An EngineService in the test's own process: scripted tokens, real credits, and a record of what it was told."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc

from clforge.v1 import engine_pb2 as pb
from clforge.v1 import generation_pb2
from clforge.v1.engine_pb2_grpc import EngineServiceServicer, add_EngineServiceServicer_to_server
from clforge.v1.generation_pb2 import Accepted, Delta, Finished, Logprob, TokenLogprobs, Update, Usage
from service_common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from service_common.health import Health
from service_common.rpc import make_server
from service_common.status import to_status
from service_common.tokenizer_file import vocab_sha256
from tests.gguf_builder import tokenizer_keys, write_gguf

Script = Callable[[pb.TokenSubmit, int], Sequence[int]]
MODEL_NAME = "fake"
EOS = 2


def tokenizer_gguf(
    *, reverse_pieces: bool = False, model: str = "llama", chat_template: str | None = None, add_bos: bool = True
) -> bytes:
    """A tokenizer file of 302 tokens; with `reverse_pieces` the same pieces under other ids."""
    keys = {**tokenizer_keys(), "tokenizer.ggml.model": model, "tokenizer.ggml.add_bos_token": add_bos}
    if chat_template is not None:
        keys["tokenizer.chat_template"] = chat_template
    if reverse_pieces:
        tokens = keys["tokenizer.ggml.tokens"]
        keys["tokenizer.ggml.tokens"] = tokens[:259] + tokens[:258:-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.gguf"
        write_gguf(path, "llama", keys, {})
        return path.read_bytes()


def byte_tokens(text: str) -> list[int]:
    """The text as byte tokens, one per byte of UTF-8."""
    return [3 + byte for byte in text.encode()]


@dataclass
class _Request:
    """A live request: its credit, and the ends that the client asked for."""

    submit: pb.TokenSubmit
    credit: asyncio.Semaphore
    unlimited: bool
    stops: dict[int, int] = field(default_factory=dict)
    cancelled: bool = False
    task: asyncio.Task[None] | None = None


class FakeEngine(EngineServiceServicer):
    """Serves `script(submit, choice)` for each choice, then end-of-generation, while `gate` is set."""

    def __init__(self, script: Script, data: bytes | None = None) -> None:
        self.script = script
        self.version = version("clforge")
        self.num_top_logprobs = 1
        self.num_unexplained_tokens = 0
        self.refusal: RequestError | None = None
        self.loading = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.live: dict[str, _Request] = {}
        self._global_ids = itertools.count(1)
        self.submits: list[pb.TokenSubmit] = []
        self.stops: list[tuple[int, int]] = []
        self.granted_tokens = 0
        self.num_loading_answers = 0
        self.num_load_watchers = 0
        self.ends_load_watches = True
        self.health = Health("clforge.v1.EngineService")
        self._server: grpc.aio.Server | None = None
        self.serve_vocabulary(data or tokenizer_gguf())

    def serve_vocabulary(self, data: bytes) -> None:
        """Another vocabulary from now on."""
        self.data, self.sha256 = data, vocab_sha256(data)

    async def start(self, address: str) -> None:
        """Listens on `address`."""
        self._server = make_server()
        add_EngineServiceServicer_to_server(self, self._server)
        self.health.add_to_server(self._server)
        self._server.add_insecure_port(address)
        self.set_loading(self.loading)
        await self._server.start()

    async def stop(self) -> None:
        """Ends all streams at once."""
        assert self._server is not None
        await self._server.stop(None)

    def set_loading(self, loading: bool) -> None:
        """Whether the model still loads."""
        self.loading = loading
        self.health.set_ready(not loading)

    async def GenerateTokens(
        self, request_iterator: AsyncIterator[pb.GenerateTokensRequest], context: Any
    ) -> AsyncIterator[pb.GenerateTokensResponse]:
        updates: asyncio.Queue[Update | None] = asyncio.Queue()
        mine: dict[int, _Request] = {}
        reader = asyncio.create_task(self._read(request_iterator, mine, updates))
        context.add_done_callback(lambda _: self._drop(mine, reader))
        while (update := await updates.get()) is not None:
            batch = [update]
            while not updates.empty() and (more := updates.get_nowait()) is not None:
                batch.append(more)
            yield pb.GenerateTokensResponse(updates=batch)

    async def GetModelInfo(self, request: Any, context: Any) -> pb.EngineServiceGetModelInfoResponse:
        if self.loading:
            self.num_loading_answers += 1
            raise UnavailableError("the model is loading (7 %)", reason="LOADING", retry_after_seconds=1.0)
        info = generation_pb2.ModelInfo(
            name=MODEL_NAME, vocab_size=302, context_length=64, vocab_sha256=self.sha256, version=self.version
        )
        return pb.EngineServiceGetModelInfoResponse(model_info=info)

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[pb.GetTokenizerResponse]:
        for start in range(0, len(self.data), 1000):
            part = self.data[start : start + 1000]
            yield pb.GetTokenizerResponse(data=part, vocab_sha256=self.sha256, total_bytes=len(self.data))

    async def GetLoad(self, request: Any, context: Any) -> pb.GetLoadResponse:
        return pb.GetLoadResponse(load=self._load())

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[pb.EngineServiceWatchLoadResponse]:
        self.num_load_watchers += 1
        context.add_done_callback(lambda _: setattr(self, "num_load_watchers", self.num_load_watchers - 1))
        yield pb.EngineServiceWatchLoadResponse(load=self._load())
        if not self.ends_load_watches:
            await asyncio.Event().wait()

    async def ListRequests(self, request: Any, context: Any) -> pb.EngineServiceListRequestsResponse:
        infos = [generation_pb2.RequestInfo(global_id=global_id) for global_id in self.live]
        return pb.EngineServiceListRequestsResponse(requests=infos)

    async def CancelRequest(
        self, request: pb.EngineServiceCancelRequestRequest, context: Any
    ) -> pb.EngineServiceCancelRequestResponse:
        live = self.live.get(request.global_id)
        if live is None or live.task is None:
            raise NotFoundError("no such request", reason="UNKNOWN_REQUEST")
        live.task.cancel()
        return pb.EngineServiceCancelRequestResponse()

    async def Embed(self, request: Any, context: Any) -> pb.EngineServiceEmbedResponse:
        raise NotImplementedError

    def _load(self) -> generation_pb2.Load:
        return generation_pb2.Load(num_requests_running=len(self.live))

    def _drop(self, mine: dict[int, _Request], reader: asyncio.Task[None]) -> None:
        reader.cancel()
        for request in list(mine.values()):
            if request.task is not None:
                request.task.cancel()

    async def _read(
        self,
        messages: AsyncIterator[pb.GenerateTokensRequest],
        mine: dict[int, _Request],
        updates: asyncio.Queue[Update | None],
    ) -> None:
        async for message in messages:
            kind = message.WhichOneof("message")
            if kind == "submit":
                self._submit(message.submit, mine, updates)
                continue
            request = mine.get(getattr(message, str(kind)).request_id)
            if request is None:
                continue  # it crossed the end
            match kind:
                case "credit":
                    self.granted_tokens += message.credit.tokens
                    for _ in range(message.credit.tokens):
                        request.credit.release()
                case "stop":
                    self.stops.append((message.stop.choice, message.stop.num_delivered_tokens))
                    request.stops[message.stop.choice] = message.stop.num_delivered_tokens
                    request.credit.release()
                case "cancel" if request.task is not None:
                    request.task.cancel()
        updates.put_nowait(None)

    def _submit(self, submit: pb.TokenSubmit, mine: dict[int, _Request], updates: asyncio.Queue[Update | None]) -> None:
        self.submits.append(submit)
        error = self._refusal_of(submit)
        if error is not None:
            finished = Finished(reason=generation_pb2.FINISH_REASON_ERROR, error=to_status(error))
            updates.put_nowait(Update(request_id=submit.request_id, finished=finished))
            return
        params = submit.params
        request = _Request(submit, asyncio.Semaphore(params.initial_credit), not params.HasField("initial_credit"))
        global_id = f"{next(self._global_ids):032x}"
        mine[submit.request_id] = self.live[global_id] = request
        accepted = Accepted(global_id=global_id, seed=7, numerics_id="clf1", num_prompt_tokens=len(submit.token_ids))
        updates.put_nowait(Update(request_id=submit.request_id, accepted=accepted))
        request.task = asyncio.create_task(self._run(request, updates))
        request.task.add_done_callback(lambda _: (self.live.pop(global_id), mine.pop(submit.request_id)))

    def _refusal_of(self, submit: pb.TokenSubmit) -> RequestError | None:
        if submit.vocab_sha256 != self.sha256:
            return FailedPreconditionError("another vocabulary", reason="VOCABULARY_CHANGED")
        if not 0 <= submit.params.sampling.temperature <= 100:
            return InvalidArgumentError("params.sampling.temperature", submit.params.sampling.temperature, "0 to 100")
        return self.refusal

    async def _run(self, request: _Request, updates: asyncio.Queue[Update | None]) -> None:
        submit = request.submit
        if submit.params.HasField("prompt_logprobs"):
            for token_id in submit.token_ids[1:]:
                scores = [TokenLogprobs(chosen=Logprob(token_id=token_id, logprob=-0.5))]
                delta = Delta(prompt_logprobs=scores)
                updates.put_nowait(Update(request_id=submit.request_id, delta=delta))
        for choice in range(submit.params.n if submit.params.HasField("n") else 1):
            generated = 0
            try:
                for token_id in self.script(submit, choice)[: submit.params.stopping.max_tokens or None]:
                    await self._turn(request)
                    if choice in request.stops:
                        break
                    generated += 1
                    delta = self._delta(submit, token_id)
                    updates.put_nowait(Update(request_id=submit.request_id, choice=choice, delta=delta))
            except asyncio.CancelledError:
                request.cancelled = True
            finished = self._end(request, choice, generated)
            finished.usage.CopyFrom(
                Usage(prompt_tokens=len(submit.token_ids), generated_tokens=generated, cached_tokens=1)
            )
            updates.put_nowait(Update(request_id=submit.request_id, choice=choice, finished=finished))

    async def _turn(self, request: _Request) -> None:
        if request.cancelled:
            raise asyncio.CancelledError
        await asyncio.sleep(0)
        await self.gate.wait()
        if not request.unlimited:
            await request.credit.acquire()

    def _end(self, request: _Request, choice: int, generated: int) -> Finished:
        if request.cancelled:
            return Finished(reason=generation_pb2.FINISH_REASON_CANCELLED)
        if choice in request.stops:
            return Finished(reason=generation_pb2.FINISH_REASON_STOP)
        if generated == request.submit.params.stopping.max_tokens:
            return Finished(reason=generation_pb2.FINISH_REASON_LENGTH)
        return Finished(reason=generation_pb2.FINISH_REASON_STOP, stop_token_id=EOS)

    def _delta(self, submit: pb.TokenSubmit, token_id: int) -> Delta:
        delta = Delta(token_ids=[token_id], num_tokens=1)
        if submit.params.HasField("logprobs"):
            chosen = Logprob(token_id=token_id, logprob=-0.5)
            delta.token_ids.extend([token_id] * self.num_unexplained_tokens)
            delta.logprobs.append(TokenLogprobs(chosen=chosen, top=[chosen] * self.num_top_logprobs))
        return delta
