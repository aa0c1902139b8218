"""The RPCs of EngineService. Everything here runs on the event loop; the device is the engine loop's business."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import grpc

from clforge.v1 import engine_pb2 as pb
from clforge.v1 import generation_pb2
from clforge.v1.engine_pb2_grpc import EngineServiceServicer
from engine_service.conversion import to_load, to_request_info
from engine_service.engine_loop import EngineLoop
from engine_service.load_feed import LoadFeed
from engine_service.request_registry import RequestRegistry
from engine_service.request_stream import RequestStream
from engine_service.served_model import ServedModel
from service_common.errors import UnavailableError, UnimplementedError
from service_common.outbox import split

SERVICE = "clforge.v1.EngineService"
TOKENIZER_CHUNK_BYTES = 1 << 20

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Loading:
    """How far the weights are; written by the engine thread, read by anyone."""

    done_bytes: int = 0
    total_bytes: int = 0

    def error(self) -> UnavailableError:
        """What a caller gets meanwhile."""
        percent = 100 * self.done_bytes // max(1, self.total_bytes)
        return UnavailableError(f"the model is loading ({percent} %)", reason="LOADING", retry_after_seconds=1.0)


@dataclass
class TokenizerFile:
    """The vocabulary as a GGUF without tensors, and its sha256."""

    data: bytes
    sha256: str


@dataclass
class Serving:
    """What exists once the model is loaded."""

    model: ServedModel
    registry: RequestRegistry


@dataclass
class EngineServer(EngineServiceServicer):
    """Answers GetTokenizer at once, and everything else when `serving` is set; refuses when `draining` is."""

    tokenizer_file: TokenizerFile
    loop: EngineLoop
    loading: Loading
    serving: Serving | None = None
    draining: bool = False
    load_feed: LoadFeed = field(init=False)
    _streams: set[RequestStream] = field(default_factory=set)
    _no_streams: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.load_feed = LoadFeed(self._load)
        self._no_streams.set()

    async def GenerateTokens(
        self, request_iterator: AsyncIterator[pb.GenerateTokensRequest], context: _Context
    ) -> AsyncIterator[pb.GenerateTokensResponse]:
        stream = RequestStream(self._serving().registry)
        self._streams.add(stream)
        self._no_streams.clear()
        reader = asyncio.create_task(stream.read(request_iterator))
        try:
            async for updates in stream.outbox.batches():
                for part in split(updates):
                    yield pb.GenerateTokensResponse(updates=part)
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            stream.abandon()
            self._streams.discard(stream)
            if not self._streams:
                self._no_streams.set()

    async def GetModelInfo(
        self, request: pb.EngineServiceGetModelInfoRequest, context: _Context
    ) -> pb.EngineServiceGetModelInfoResponse:
        model = self._serving().model
        return pb.EngineServiceGetModelInfoResponse(
            model_info=generation_pb2.ModelInfo(
                name=model.name,
                architecture=model.architecture,
                vocab_size=model.vocab_size,
                context_length=model.context_length,
                trained_context_length=model.trained_context_length,
                eog_token_ids=model.eog_token_ids,
                vocab_sha256=model.vocab_sha256,
                numerics_id=model.numerics_id,
                weight_bytes=model.weight_bytes,
                num_parameters=model.num_parameters,
                device=model.device,
                version=version("clforge"),
            )
        )

    async def GetTokenizer(
        self, request: pb.GetTokenizerRequest, context: _Context
    ) -> AsyncIterator[pb.GetTokenizerResponse]:
        data = self.tokenizer_file.data
        for start in range(0, len(data), TOKENIZER_CHUNK_BYTES):
            yield pb.GetTokenizerResponse(
                data=data[start : start + TOKENIZER_CHUNK_BYTES],
                vocab_sha256=self.tokenizer_file.sha256,
                total_bytes=len(data),
            )

    async def GetLoad(self, request: pb.GetLoadRequest, context: _Context) -> pb.GetLoadResponse:
        self._serving()
        return pb.GetLoadResponse(load=await self._load())

    async def WatchLoad(
        self, request: pb.EngineServiceWatchLoadRequest, context: _Context
    ) -> AsyncIterator[pb.EngineServiceWatchLoadResponse]:
        self._serving()
        async for load in self.load_feed.watch():
            yield pb.EngineServiceWatchLoadResponse(load=load)

    async def ListRequests(
        self, request: pb.EngineServiceListRequestsRequest, context: _Context
    ) -> pb.EngineServiceListRequestsResponse:
        registry = self._serving().registry
        infos = await self._ask(lambda engine: engine.scheduler.requests())
        named = [(registry.global_id(info.request_id, request.owner), info) for info in infos]
        requests = [to_request_info(global_id, info) for global_id, info in named if global_id is not None]
        return pb.EngineServiceListRequestsResponse(requests=requests)

    async def CancelRequest(
        self, request: pb.EngineServiceCancelRequestRequest, context: _Context
    ) -> pb.EngineServiceCancelRequestResponse:
        self._serving().registry.cancel_by_global_id(request.global_id, request.owner)
        return pb.EngineServiceCancelRequestResponse()

    async def Embed(self, request: pb.EngineServiceEmbedRequest, context: _Context) -> pb.EngineServiceEmbedResponse:
        raise UnimplementedError("this server does not embed yet", reason="NOT_SERVED")

    def refuse_new(self) -> None:
        """From now on new requests get UNAVAILABLE, and nobody hears of the load any more (see lifecycle.Work)."""
        self.draining = True
        self.load_feed.close()
        if self.serving is not None:
            self.serving.registry.refuse_new()

    def cancel_all(self) -> None:
        """Ends requests in flight with a terminal message each (see lifecycle.Work)."""
        if self.serving is not None:
            self.serving.registry.cancel_all()

    async def wait_idle(self) -> None:
        """Returns when no request is live and every stream has been told all and closed (see lifecycle.Work)."""
        if self.serving is not None:
            await self.serving.registry.wait_idle()
        for stream in self._streams:
            stream.outbox.close()
        await self._no_streams.wait()

    def _serving(self) -> Serving:
        if self.draining:
            raise UnavailableError("the engine is shutting down", reason="DRAINING", retry_after_seconds=1.0)
        if self.serving is None:
            raise self.loading.error()
        return self.serving

    async def _load(self) -> generation_pb2.Load:
        return to_load(await self._ask(lambda engine: engine.scheduler.stats()))

    async def _ask(self, question: Callable[[Any], Any]) -> Any:
        return await asyncio.wrap_future(self.loop.query(question))
