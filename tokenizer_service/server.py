"""The RPCs of TokenizerService. All of it runs on the event loop; large texts are encoded on the encoder's thread,
conversations rendered by a process of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from clforge.v1 import engine_pb2
from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceServicer
from service_common.authentication import current_caller
from service_common.errors import InvalidArgumentError, UnimplementedError
from tokenizer_service.batches import check_decode, check_encode, decode, encode
from tokenizer_service.chat_encoder import ChatEncoder
from tokenizer_service.completion import Completion
from tokenizer_service.conversation import check_chat
from tokenizer_service.encoder import Encoder
from tokenizer_service.engine_client import ANSWER_SECONDS, EngineLink
from tokenizer_service.load_watch import told_load
from tokenizer_service.sessions import Sessions

SERVICE = "clforge.v1.TokenizerService"

_Context = grpc.aio.ServicerContext[Any, Any]


class TokenizerServer(TokenizerServiceServicer):
    """Text in, text out: sessions do the generations, the link's engine answers what only it knows."""

    def __init__(
        self,
        link: EngineLink,
        sessions: Sessions,
        encoder: Encoder,
        chat_encoder: ChatEncoder,
        *,
        max_prompt_bytes: int,
    ) -> None:
        self._link, self._sessions, self._encoder, self._chat_encoder = link, sessions, encoder, chat_encoder
        self._max_prompt_bytes = max_prompt_bytes

    async def GenerateText(
        self, request_iterator: AsyncIterator[pb.GenerateTextRequest], context: _Context
    ) -> AsyncIterator[pb.GenerateTextResponse]:
        with self._sessions.open(current_caller()) as session:
            _when_done(context, lambda: self._sessions.close(session))
            reader = asyncio.create_task(session.read(request_iterator))
            try:
                async for updates in session.batches():
                    yield pb.GenerateTextResponse(updates=updates)
                if not reader.done():
                    self._sessions.check_not_draining()
                await reader
            finally:
                reader.cancel()

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> AsyncIterator[pb.GenerateResponse]:
        with self._sessions.open(current_caller()) as session:
            _when_done(context, lambda: self._sessions.close(session))
            session.submit(_plain_submit(request))
            session.half_close()
            async for updates in session.batches():
                yield pb.GenerateResponse(updates=updates)

    async def Complete(self, request: pb.CompleteRequest, context: _Context) -> pb.CompleteResponse:
        completion = Completion()
        with self._sessions.open(current_caller()) as session:
            session.submit(_plain_submit(request))
            session.half_close()
            async for updates in session.batches():
                for update in updates:
                    completion.add(update)
        return completion.response()

    async def Encode(self, request: pb.EncodeRequest, context: _Context) -> pb.EncodeResponse:
        check_encode(request, self._max_prompt_bytes)
        vocabulary = self._link.encoding().vocabulary
        return await self._encoder.run(lambda: encode(request, vocabulary), sum(map(len, request.texts)))

    async def Decode(self, request: pb.DecodeRequest, context: _Context) -> pb.DecodeResponse:
        vocabulary = self._link.encoding().vocabulary
        check_decode(request, vocabulary)
        num_tokens = sum(len(sequence.ids) for sequence in request.sequences)
        return await self._encoder.run(lambda: decode(request, vocabulary), num_tokens)

    async def RenderChat(self, request: pb.RenderChatRequest, context: _Context) -> pb.RenderChatResponse:
        check_chat(request.chat, "chat", self._max_prompt_bytes)
        rendered = await self._chat_encoder.encode(request.chat, self._link.encoding(), "chat")
        return pb.RenderChatResponse(text=rendered.text, token_ids=pb.TokenIds(ids=rendered.token_ids))

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: _Context) -> pb.GetModelInfoResponse:
        question = engine_pb2.EngineServiceGetModelInfoRequest()
        answer = await self._link.ask(self._link.stub.GetModelInfo(question, timeout=ANSWER_SECONDS))
        answer.model_info.chat_template_origin = self._link.encoding().chat_template.origin
        return pb.GetModelInfoResponse(model_info=answer.model_info)

    async def ListRequests(self, request: pb.ListRequestsRequest, context: _Context) -> pb.ListRequestsResponse:
        question = engine_pb2.EngineServiceListRequestsRequest(owner=current_caller().name)
        answer = await self._link.ask(self._link.stub.ListRequests(question, timeout=ANSWER_SECONDS))
        return pb.ListRequestsResponse(requests=answer.requests)

    async def CancelRequest(self, request: pb.CancelRequestRequest, context: _Context) -> pb.CancelRequestResponse:
        question = engine_pb2.EngineServiceCancelRequestRequest(
            global_id=request.global_id, owner=current_caller().name
        )
        await self._link.ask(self._link.stub.CancelRequest(question, timeout=ANSWER_SECONDS))
        return pb.CancelRequestResponse()

    async def WatchLoad(self, request: pb.WatchLoadRequest, context: _Context) -> AsyncIterator[pb.WatchLoadResponse]:
        self._sessions.check_not_draining()
        watch = self._link.stub.WatchLoad(engine_pb2.EngineServiceWatchLoadRequest())
        _when_done(context, watch.cancel)
        async for load in told_load(watch, self._link, self._sessions):
            yield pb.WatchLoadResponse(load=load)

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:
        raise UnimplementedError("this server does not embed yet", reason="NOT_SERVED")


def _when_done(context: _Context, act: Callable[[], object]) -> None:
    """Calls `act` when the RPC ends: a generator whose write was cancelled is itself only closed some time later."""
    context.add_done_callback(lambda _: act())  # type: ignore[arg-type]  # the stub names a class for a callable


def _plain_submit(request: pb.GenerateRequest | pb.CompleteRequest) -> pb.TextSubmit:
    if request.params.HasField("initial_credit"):
        raise InvalidArgumentError(
            "params.initial_credit",
            request.params.initial_credit,
            "must not be set: only GenerateText takes Credit",
        )
    return pb.TextSubmit(prompt=request.prompt, params=request.params, model=request.model)
