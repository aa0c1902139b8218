"""A TokenizerService that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

from clforge.v1 import generation_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from clforge.v1.generation_pb2 import Update

Context = grpc.aio.ServicerContext[Any, Any]
Incoming = AsyncIterator[tokenizer_pb2.GenerateTextRequest]


def status(code: grpc.StatusCode, *, field: str = "", retry_seconds: float | None = None) -> status_pb2.Status:
    """A status as the services send it."""
    result = status_pb2.Status(code=code.value[0], message=f"it is {code.name}")
    result.details.add().Pack(error_details_pb2.ErrorInfo(reason="BECAUSE", domain="clforge.v1"))
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field)
        result.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_seconds is not None:
        delay = Duration(nanos=int(retry_seconds * 1e9))
        result.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return result


def accepted(request_id: int = 0) -> Update:
    """The first update of a request."""
    return Update(request_id=request_id, accepted=generation_pb2.Accepted(global_id="g", seed=7, num_prompt_tokens=3))


def delta(sequence: int, text: str, request_id: int = 0, num_tokens: int = 1, **fields: Any) -> Update:
    """A piece of choice 0."""
    piece = generation_pb2.Delta(text=text, token_ids=[1] * num_tokens, num_tokens=num_tokens, **fields)
    return Update(request_id=request_id, sequence=sequence, delta=piece)


def finished(sequence: int, request_id: int = 0, **fields: Any) -> Update:
    """The end of choice 0, STOP unless said otherwise."""
    end = generation_pb2.Finished(**({"reason": generation_pb2.FINISH_REASON_STOP} | fields))
    return Update(request_id=request_id, sequence=sequence, finished=end)


def failed(sequence: int, error: status_pb2.Status, request_id: int = 0) -> Update:
    """The end of choice 0 by an error."""
    return finished(sequence, request_id, reason=generation_pb2.FINISH_REASON_ERROR, error=error)


# What a script does next: say an update, end the call with a status, or wait for some seconds.
Step: TypeAlias = Update | status_pb2.Status | float


class ScriptedServer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Answers the plain door with one script per call; GenerateText says what `talk` says, the rest is fixed.

    `live` are the requests that can be listed and cancelled; WatchLoad tells `loads` and then waits.
    """

    def __init__(self) -> None:
        self.scripts: list[list[Step]] = []
        self.requests: list[Any] = []
        self.peers: list[str] = []
        self.cancelled = asyncio.Event()
        self.live: dict[str, generation_pb2.RequestInfo] = {}  # by global id
        self.loads: list[generation_pb2.Load | status_pb2.Status] = []
        self.talk: Callable[[Incoming, Context], AsyncIterator[list[Update]]] | None = None

    async def Generate(
        self, request: tokenizer_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[tokenizer_pb2.GenerateResponse]:
        """Plays the next script."""
        self.requests.append(request)
        try:
            for step in self.scripts.pop(0):
                if isinstance(step, Update):
                    yield tokenizer_pb2.GenerateResponse(updates=[step])
                elif isinstance(step, status_pb2.Status):
                    await context.abort_with_status(rpc_status.to_status(step))
                else:
                    await asyncio.sleep(step)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def GenerateText(
        self, request_iterator: Incoming, context: Context
    ) -> AsyncIterator[tokenizer_pb2.GenerateTextResponse]:
        """Says what `talk` says."""
        assert self.talk is not None
        try:
            async for updates in self.talk(request_iterator, context):
                yield tokenizer_pb2.GenerateTextResponse(updates=updates)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Complete(
        self, request: tokenizer_pb2.CompleteRequest, context: Context
    ) -> tokenizer_pb2.CompleteResponse:
        """Echoes the prompt."""
        self.requests.append(request)
        choice = tokenizer_pb2.CompleteResponse.Choice(text=request.prompt.text, finished=finished(0).finished)
        return tokenizer_pb2.CompleteResponse(choices=[choice], accepted=accepted().accepted)

    async def Encode(self, request: tokenizer_pb2.EncodeRequest, context: Context) -> tokenizer_pb2.EncodeResponse:
        """One id per byte."""
        self.peers.append(context.peer())
        sequences = [tokenizer_pb2.TokenIds(ids=text.encode()) for text in request.texts]
        offsets = [_offsets(text.encode()) for text in request.texts] if request.with_offsets else []
        return tokenizer_pb2.EncodeResponse(sequences=sequences, offsets=offsets)

    async def Decode(self, request: tokenizer_pb2.DecodeRequest, context: Context) -> tokenizer_pb2.DecodeResponse:
        """One byte per id; others are refused."""
        for number, sequence in enumerate(request.sequences):
            for index, token_id in enumerate(sequence.ids):
                if token_id > 0xFF:
                    error = status(grpc.StatusCode.INVALID_ARGUMENT, field=f"sequences[{number}].ids[{index}]")
                    error.message = f"sequences[{number}].ids[{index}] is {token_id}"
                    await context.abort_with_status(rpc_status.to_status(error))
        offsets = [_offsets(bytes(each.ids)) for each in request.sequences] if request.with_offsets else []
        texts = [bytes(each.ids).decode() for each in request.sequences]
        return tokenizer_pb2.DecodeResponse(texts=texts, offsets=offsets)

    async def RenderChat(
        self, request: tokenizer_pb2.RenderChatRequest, context: Context
    ) -> tokenizer_pb2.RenderChatResponse:
        """The contents, joined, and one id per byte."""
        self.requests.append(request)
        text = "|".join(message.content for message in request.chat.messages)
        return tokenizer_pb2.RenderChatResponse(text=text, token_ids=tokenizer_pb2.TokenIds(ids=text.encode()))

    async def GetModelInfo(
        self, request: tokenizer_pb2.GetModelInfoRequest, context: Context
    ) -> tokenizer_pb2.GetModelInfoResponse:
        """A model of which little is known."""
        info = generation_pb2.ModelInfo(name="tiny", vocab_size=512, eog_token_ids=[2])
        return tokenizer_pb2.GetModelInfoResponse(model_info=info)

    async def ListRequests(
        self, request: tokenizer_pb2.ListRequestsRequest, context: Context
    ) -> tokenizer_pb2.ListRequestsResponse:
        """Those in `live`."""
        return tokenizer_pb2.ListRequestsResponse(requests=self.live.values())

    async def CancelRequest(
        self, request: tokenizer_pb2.CancelRequestRequest, context: Context
    ) -> tokenizer_pb2.CancelRequestResponse:
        """Takes it out of `live`."""
        if self.live.pop(request.global_id, None) is None:
            await context.abort_with_status(rpc_status.to_status(status(grpc.StatusCode.NOT_FOUND)))
        return tokenizer_pb2.CancelRequestResponse()

    async def WatchLoad(
        self, request: tokenizer_pb2.WatchLoadRequest, context: Context
    ) -> AsyncIterator[tokenizer_pb2.WatchLoadResponse]:
        """Tells `loads`."""
        try:
            for load in list(self.loads):
                if isinstance(load, status_pb2.Status):
                    self.loads.remove(load)
                    await context.abort_with_status(rpc_status.to_status(load))
                else:
                    yield tokenizer_pb2.WatchLoadResponse(load=load)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def _offsets(data: bytes) -> tokenizer_pb2.TokenOffsets:
    """Of one id per byte of a text."""
    owners = [index for index, character in enumerate(data.decode()) for _ in character.encode()]
    return tokenizer_pb2.TokenOffsets(starts=owners, ends=[owner + 1 for owner in owners])


@asynccontextmanager
async def running(servicer: ScriptedServer, folder: Path) -> AsyncIterator[str]:
    """The address of a server with this servicer."""
    server = grpc.aio.server()
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(servicer, server)
    target = f"unix:{folder}/s"
    server.add_insecure_port(target)
    await server.start()
    try:
        yield target
    finally:
        await server.stop(None)
