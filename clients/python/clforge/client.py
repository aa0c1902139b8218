"""The client: one connection to a CLForge server.

async with Client("127.0.0.1:50051") as client:
    async for event in client.generate("Once upon a time", max_tokens=50):
        if isinstance(event, Delta):
            print(event.text, end="")
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from clforge import fields, retry
from clforge.chat import Chat, Message, RenderedChat, chat_to_proto
from clforge.errors import ConnectionLostError, ProtocolError, UnreachableError, from_rpc_error
from clforge.events import Completion, Event, ModelInfo
from clforge.fields import MAX_MESSAGE_BYTES, check_size
from clforge.load import Load, RequestInfo, load_from_proto, request_info_from_proto
from clforge.params import Params, Prompt, model_name, num_choices, params_to_proto, prompt_to_proto, set_timeout
from clforge.session import Session
from clforge.tls import TLS, authorization
from clforge.tokens import Decoding, Encoding, decode_request, decodings, encode_request, encodings
from clforge.updates import UpdateReader, completion_from_proto, model_info_from_proto
from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub

if TYPE_CHECKING:
    from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub

DEFAULT_TARGET = "127.0.0.1:50051"

_CALL_SECONDS = 30.0  # for calls that generate nothing

_SEVERAL_ADDRESSES = ("dns:", "ipv4:", "ipv6:")  # schemes of targets that may be more than one server
_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'

_T = TypeVar("_T")


class Client:
    """A connection to the server at `target`: host:port, dns:///host:port or unix:/path.

    Where a dns: target stands for several servers, requests take turns over them, and a session stays with one.

    Used as `async with Client(…) as client`. Connects at the first call, and again when the connection is lost. A call
    that cannot connect within `connect_seconds` raises UnreachableError. Where the server refuses and says when to come
    back, a call is tried again for up to `retry_seconds`, unless a token was delivered. Any number of tasks of one
    event loop may use it.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TLS | bool = False,
        api_key: str | None = None,
        connect_seconds: float = 5.0,
        retry_seconds: float = 30.0,
    ) -> None:
        """`tls` True trusts public authorities; `TLS` says whom else. `api_key` goes with every call.

        InvalidRequestError for files that cannot be used, and for a key that would leave this machine in plain text.
        """
        self.target = target
        self._options = _channel_options(target, connect_seconds)
        self._credentials: grpc.ChannelCredentials | None = None
        if tls:
            security = TLS() if tls is True else tls
            self._credentials = security.credentials()
            self._options += security.channel_options()
        self._metadata = authorization(api_key, target, secured=self._credentials is not None)
        self._retry_seconds = retry_seconds
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self.target, self._options)
        else:
            self._channel = grpc.aio.secure_channel(self.target, self._credentials, self._options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def wait_for_ready(self, seconds: float | None = None) -> None:
        """Returns once the server answers and has loaded its model; UnreachableError when `seconds` pass before.

        Raises what the server says where it does not say that trying again makes sense.
        """
        request = pb.GetModelInfoRequest()
        try:
            async with asyncio.timeout(seconds):
                await retry.call(
                    lambda: self._call(self._stub.GetModelInfo(request, wait_for_ready=True, metadata=self._metadata)),
                    retry.Retries(math.inf),
                )
        except TimeoutError as error:
            raise UnreachableError(self.target, f"it was not ready within {seconds:g} s") from error

    def generate(self, prompt: Prompt, **params: Unpack[Params]) -> AsyncGenerator[Event, None]:
        """Generates from a text, a Chat, or token ids, and yields Accepted, Deltas and one Finished per choice.

        Parameters are those of `Params`. Raises the error of a choice that failed. Leaving the loop cancels the
        request: at once with `contextlib.aclosing`, else when the iterator is collected.
        """
        request = pb.GenerateRequest(
            prompt=prompt_to_proto(prompt), params=params_to_proto(params), model=model_name(params)
        )
        check_size(request, "prompt")
        retries = retry.Retries(self._retry_seconds, params.get("timeout"))

        def attempt() -> AsyncGenerator[Event, None]:
            set_timeout(request.params, retries.timeout_left)
            return self._events(request)

        return retry.stream(attempt, retries)

    async def complete(self, prompt: Prompt, **params: Unpack[Params]) -> Completion:
        """Generates, and returns the whole answer. Parameters as for `generate`."""
        request = pb.CompleteRequest(
            prompt=prompt_to_proto(prompt), params=params_to_proto(params), model=model_name(params)
        )
        check_size(request, "prompt")
        retries = retry.Retries(self._retry_seconds, params.get("timeout"))

        async def attempt() -> pb.CompleteResponse:
            set_timeout(request.params, retries.timeout_left)
            return await self._call(self._stub.Complete(request, metadata=self._metadata))

        return completion_from_proto(await retry.call(attempt, retries))

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> AsyncGenerator[Event, None]:
        """Generates the assistant's next turn: `generate` of a Chat, whose fields these are.

        A model without a chat template gets the turns as plain dialogue ("User: …"). InvalidRequestError when the
        template refuses the conversation.
        """
        return self.generate(Chat(messages, system, tools, template_kwargs), **params)

    async def render_chat(
        self,
        messages: str | Sequence[Message],
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """The prompt that `chat` would generate from, as text and as token ids."""
        request = pb.RenderChatRequest(chat=chat_to_proto(Chat(messages, system, tools, template_kwargs)))
        check_size(request, "messages")
        response = await self._ask(
            lambda: self._stub.RenderChat(request, timeout=_CALL_SECONDS, metadata=self._metadata)
        )
        return RenderedChat(response.text, tuple(response.token_ids.ids))

    async def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> tuple[int, ...]:
        """The token ids of a text.

        `add_special` adds the begin- and end-of-text tokens that the model asks for; `parse_special` reads special
        tokens spelled in the text as such.
        """
        text = fields.text(text, "text")
        (encoding,) = await self.encode_batch([text], add_special=add_special, parse_special=parse_special)
        return encoding.token_ids

    async def encode_batch(
        self,
        texts: Iterable[str],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        with_offsets: bool = False,
    ) -> tuple[Encoding, ...]:
        """The token ids of up to 1024 texts, in order, and with `with_offsets` which part of its text each stands for.
        Otherwise as `encode`."""
        request = encode_request(texts, add_special=add_special, parse_special=parse_special, with_offsets=with_offsets)
        response = await self._ask(lambda: self._stub.Encode(request, timeout=_CALL_SECONDS, metadata=self._metadata))
        return encodings(request, response)

    async def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD; `skip_special` leaves out control tokens."""
        ids = fields.token_ids(token_ids, "token_ids")
        (decoding,) = await self.decode_batch([ids], skip_special=skip_special)
        return decoding.text

    async def decode_batch(
        self, sequences: Iterable[Iterable[int]], *, skip_special: bool = True, with_offsets: bool = False
    ) -> tuple[Decoding, ...]:
        """The texts of up to 1024 lists of token ids, in order, and with `with_offsets` which part of its text each id
        stands for. Otherwise as `decode`."""
        request = decode_request(sequences, skip_special=skip_special, with_offsets=with_offsets)
        response = await self._ask(lambda: self._stub.Decode(request, timeout=_CALL_SECONDS, metadata=self._metadata))
        return decodings(request, response)

    async def model_info(self) -> ModelInfo:
        """The model that is being served."""
        request = pb.GetModelInfoRequest()
        response = await self._ask(
            lambda: self._stub.GetModelInfo(request, timeout=_CALL_SECONDS, metadata=self._metadata)
        )
        return model_info_from_proto(response.model_info)

    async def list_requests(self) -> tuple[RequestInfo, ...]:
        """The caller's live requests, oldest first."""
        request = pb.ListRequestsRequest()
        response = await self._ask(
            lambda: self._stub.ListRequests(request, timeout=_CALL_SECONDS, metadata=self._metadata)
        )
        return tuple(map(request_info_from_proto, response.requests))

    async def cancel_request(self, global_id: str) -> None:
        """Ends a live request of the caller's, by the id of its Accepted, whichever connection it came by; its reader
        gets Finished(CANCELLED). NotFoundError when none of that id is live."""
        request = pb.CancelRequestRequest(global_id=global_id)
        await self._ask(lambda: self._stub.CancelRequest(request, timeout=_CALL_SECONDS, metadata=self._metadata))

    async def load(self) -> Load:
        """How busy the engine is now."""
        return await retry.call(self._load_now, retry.Retries(self._retry_seconds))

    def watch_load(self) -> AsyncGenerator[Load, None]:
        """How busy the engine is: at once, then whenever that changes, but at least once a second and at most ten
        times. Ends when the server drains. Leave it by `contextlib.aclosing`, as for `generate`."""
        return self._loads()

    def session(self, *, window: int = 256) -> Session:
        """Many requests on one stream. `window` is how many unread tokens of a choice the server may send ahead."""
        return Session(self._stub, self._metadata, self.target, window, self._retry_seconds)

    @property
    def _stub(self) -> TokenizerServiceAsyncStub:
        if self._channel is None:
            raise RuntimeError("the client is not connected; use it as: async with Client(target) as client")
        return TokenizerServiceStub(self._channel)

    async def _ask(self, start: Callable[[], Awaitable[_T]]) -> _T:
        return await retry.call(lambda: self._call(start()), retry.Retries(self._retry_seconds))

    async def _call(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.target, answered=False) from error

    async def _load_now(self) -> Load:
        async with aclosing(self._loads(_CALL_SECONDS)) as loads:
            async for load in loads:
                return load
        raise ConnectionLostError(self.target, "it ended before the load was told")

    async def _loads(self, seconds: float | None = None) -> AsyncGenerator[Load, None]:
        answered = False
        call = self._stub.WatchLoad(pb.WatchLoadRequest(), timeout=seconds, metadata=self._metadata)
        try:
            async for response in call:
                answered = True
                yield load_from_proto(response.load)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.target, answered=answered) from error
        finally:
            call.cancel()

    async def _events(self, request: pb.GenerateRequest) -> AsyncGenerator[Event, None]:
        updates = UpdateReader(num_choices(request.params))
        answered = False
        call = self._stub.Generate(request, metadata=self._metadata)
        try:
            async for response in call:
                answered = True
                for update in response.updates:
                    yield updates.read(update)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.target, answered=answered) from error
        finally:
            call.cancel()
        if not updates.done:
            raise ProtocolError("the server ended the stream before the last choice had finished")


def _channel_options(target: str, connect_seconds: float) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A Client is a connection of its own: a process with several of them reaches several workers of a server.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 60_000),  # a prefill may send nothing for long
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", round(connect_seconds * 1000)),  # gRPC's name for the limit of one attempt
        ("grpc.max_reconnect_backoff_ms", 3_000),
        ("grpc.enable_http_proxy", 0),  # a proxy for the web is not meant for an inference server
    ]
    if target.startswith(_SEVERAL_ADDRESSES):
        options.append(("grpc.service_config", _ROUND_ROBIN))
    return options
