"""The link to the engine: one GenerateTokens stream for all clients' requests, and the vocabulary they need.

The link comes back by itself. When it breaks, its requests end with UNAVAILABLE; until it is back, none is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Protocol, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clforge.v1.engine_pb2 import (
    EngineServiceGetModelInfoRequest,
    GenerateTokensRequest,
    GenerateTokensResponse,
    TokenSubmit,
)
from clforge.v1.engine_pb2_grpc import EngineServiceStub
from clforge.v1.generation_pb2 import GenerationParams, ModelInfo, Update
from service_common.errors import FailedPreconditionError, OutOfRangeError, RequestError, UnavailableError
from service_common.rpc import MAX_MESSAGE_BYTES
from service_common.status import as_request_error, from_rpc_error
from tokenizer_service.engine_version import check_version
from tokenizer_service.outgoing import Outgoing
from tokenizer_service.vocabulary_fetch import EncodingVocabulary, FetchOptions, fetch_vocabulary

T = TypeVar("T")

ENGINE_SERVICE = "clforge.v1.EngineService"
ANSWER_SECONDS = 10.0
MAX_SUBMIT_BYTES = MAX_MESSAGE_BYTES - 64  # with room for what encloses it
FIRST_RETRY_SECONDS = 0.1
TELLING_RETRY_SECONDS = 0.8  # an engine that is away for less is not worth a line
LAST_RETRY_SECONDS = 2.0


class UpdateSink(Protocol):
    """Who gets the updates of one request. Called on the event loop; must not block."""

    def on_update(self, update: Update) -> None:
        """An update of the engine; its request_id is the link's number, not the client's."""

    def on_lost(self, error: RequestError) -> None:
        """The request is over, with this error: the link broke, or `on_update` raised. Nothing more comes."""


class EngineLink:
    """Owned by the event loop. `run` keeps the link up; the other methods may be called whether it is up or not."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        name: str,
        on_ready: Callable[[bool], None],
        options: FetchOptions,
    ) -> None:
        """`name` is the engine's address, for messages. `on_ready` hears when requests can and cannot be served.

        `options` say how vocabularies are read.
        """
        self.stub = EngineServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._name, self._on_ready, self._options = name, on_ready, options
        self._outgoing = Outgoing()
        self._sinks: dict[int, UpdateSink] = {}
        self._ids = itertools.count(1)
        self._encoding: EncodingVocabulary | None = None
        self._info: ModelInfo | None = None
        self._fetching = asyncio.Lock()
        self._down: RequestError | None = self._unreachable("it has not answered yet")

    @property
    def num_live_requests(self) -> int:
        """Requests that still get updates."""
        return len(self._sinks)

    @property
    def num_waiting_messages(self) -> int:
        """Messages that the engine has not taken yet."""
        return len(self._outgoing)

    def encoding(self) -> EncodingVocabulary:
        """The vocabulary now in use; UnavailableError before the first one has come."""
        if self._encoding is None:
            assert self._down is not None
            raise self._down
        return self._encoding

    def model_info(self) -> ModelInfo:
        """The model being served; an UnavailableError tells why requests cannot be served now."""
        if self._down is not None:
            raise self._down
        assert self._info is not None
        return self._info

    async def newer_encoding(self, than: EncodingVocabulary) -> EncodingVocabulary:
        """The engine refused ids of the vocabulary `than`: fetches anew, unless somebody already has."""
        async with self._fetching:
            if self._encoding is than:
                try:
                    await self._fetch_vocabulary()
                    self._info = await self._fetch_model_info()
                    check_version(self._info.version, version("clforge"), self._name)
                except grpc.aio.AioRpcError as failure:
                    raise self._why(failure) from failure
            return self.encoding()

    async def ask(self, call: Awaitable[T]) -> T:
        """The engine's answer to a call of `stub`. Its refusal is raised as our own; UnavailableError without one."""
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
            raise (self._why(failure) if isinstance(error, UnavailableError) else error) from failure

    def submit(
        self,
        token_ids: Sequence[int],
        params: GenerationParams,
        sha256: str,
        *,
        owner: str,
        stream_id: int,
        sink: UpdateSink,
    ) -> int:
        """Starts a request of `owner`, and returns the link's number for it; `stream_id` names the client's stream.

        UnavailableError when the link is down; OutOfRangeError for what one message cannot carry: to try it would cost
        all requests their link.
        """
        self.model_info()
        request_id = next(self._ids)
        submit = TokenSubmit(
            request_id=request_id,
            token_ids=token_ids,
            params=params,
            vocab_sha256=sha256,
            client_stream_id=stream_id,
            owner=owner,
        )
        num_bytes = submit.ByteSize()
        if num_bytes > MAX_SUBMIT_BYTES:
            raise OutOfRangeError(
                f"the request takes {num_bytes} bytes on its way to the engine; at most {MAX_SUBMIT_BYTES} are taken",
                reason="REQUEST_TOO_LARGE",
            )
        self._sinks[request_id] = sink
        self._outgoing.submit(submit)
        return request_id

    def grant(self, request_id: int, tokens: int) -> None:
        """Allows the request `tokens` more per choice."""
        if request_id in self._sinks:
            self._outgoing.credit(request_id, tokens)

    def stop(self, request_id: int, choice: int, num_delivered_tokens: int) -> None:
        """Ends one choice; its terminal update follows."""
        if request_id in self._sinks:
            self._outgoing.stop(request_id, choice, num_delivered_tokens)

    def cancel(self, request_id: int) -> None:
        """Ends the request; its terminal updates follow."""
        if request_id in self._sinks:
            self._outgoing.cancel(request_id)

    def abandon(self, request_id: int) -> None:
        """Ends the request; its sink hears nothing more."""
        if self._sinks.pop(request_id, None) is not None:
            self._outgoing.abandon(request_id)

    def forget(self, request_id: int) -> None:
        """The sink has had the last update it wants of a request that ended."""
        self._sinks.pop(request_id, None)

    async def run(self) -> None:
        """Connects, and connects again, until cancelled. StartupError if the engine's vocabulary cannot be used."""
        log = structlog.get_logger(__name__).bind(engine=self._name)
        retry_seconds, told = FIRST_RETRY_SECONDS, ""
        error: RequestError
        while True:
            try:
                await self._connect()
                template = "fallback" if self.encoding().chat_template.is_fallback else "the model's"
                log.info("engine connected", chat_template=template)
                retry_seconds, told = FIRST_RETRY_SECONDS, ""
                await self._converse()
                error = self._unreachable("it has closed the stream")
            except FailedPreconditionError as failure:
                error = failure
            except (grpc.aio.AioRpcError, UnavailableError) as failure:
                error = self._why(failure)
            # An engine that refuses to start is gone in a moment, and so are we: its own line shall stay alone.
            if self._down is None or (retry_seconds >= TELLING_RETRY_SECONDS and str(error) != told):
                log.warning("no engine", error=str(error))
                told = str(error)
            self._lose(error)
            await asyncio.sleep(retry_seconds)
            retry_seconds = min(2 * retry_seconds, LAST_RETRY_SECONDS)

    async def _connect(self) -> None:
        """Gets vocabulary and model info; the vocabulary comes first, since it is there before the weights are."""
        async with self._fetching:
            await self._fetch_vocabulary()
        try:
            info = await self._fetch_model_info()
        except grpc.aio.AioRpcError as failure:
            if from_rpc_error(failure).reason != "LOADING":
                raise
            self._down = UnavailableError("the model is loading", reason="LOADING", retry_after_seconds=1.0)
            await self._wait_until_serving()
            info = await self._fetch_model_info()
        check_version(info.version, version("clforge"), self._name)
        async with self._fetching:
            if self.encoding().sha256 != info.vocab_sha256:
                await self._fetch_vocabulary()  # another engine has taken the address meanwhile
            self._info = info

    async def _wait_until_serving(self) -> None:
        watch = self._health.Watch(health_pb2.HealthCheckRequest(service=ENGINE_SERVICE))
        try:
            async for response in watch:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        finally:
            watch.cancel()

    async def _fetch_vocabulary(self) -> None:
        known, self._encoding = self._encoding, await fetch_vocabulary(self.stub, self._options, self._encoding)
        if self._encoding is not known:
            structlog.get_logger(__name__).info("vocabulary fetched", sha256=self._encoding.sha256)

    async def _fetch_model_info(self) -> ModelInfo:
        request = EngineServiceGetModelInfoRequest()
        return (await self.stub.GetModelInfo(request, timeout=ANSWER_SECONDS)).model_info

    async def _converse(self) -> None:
        """Serves one stream until it ends."""
        call = self.stub.GenerateTokens()
        writer = asyncio.create_task(self._write(call))
        self._down = None
        self._on_ready(True)
        try:
            async for response in call:
                for update in response.updates:
                    self._dispatch(update)
        finally:
            self._on_ready(False)
            call.cancel()
            writer.cancel()

    def _dispatch(self, update: Update) -> None:
        sink = self._sinks.get(update.request_id)
        if sink is None:
            return  # it crossed the request's end
        try:
            sink.on_update(update)
        except Exception as error:
            # One request that cannot be served on must not cost the others their link.
            self.abandon(update.request_id)
            sink.on_lost(as_request_error(error))

    async def _write(self, call: grpc.aio.StreamStreamCall[GenerateTokensRequest, GenerateTokensResponse]) -> None:
        # A write fails when the stream has ended; the reader of the stream hears why.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async for message in self._outgoing.messages():
                await call.write(message)

    def _lose(self, error: RequestError) -> None:
        self._down = error
        self._outgoing.clear()
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.on_lost(error)

    def _why(self, failure: grpc.aio.AioRpcError | UnavailableError) -> UnavailableError:
        """Why the engine cannot serve now. What a working engine would not say means that there is none."""
        error = from_rpc_error(failure) if isinstance(failure, grpc.aio.AioRpcError) else failure
        if isinstance(error, UnavailableError) and error.retry_after_seconds is not None:
            return error
        return self._unreachable(str(error))

    def _unreachable(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"no engine at {self._name} ({why}); is it running?", reason="NO_ENGINE", retry_after_seconds=1.0
        )
