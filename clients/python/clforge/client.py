"""The client: one connection to a CLForge server.

async with Client("127.0.0.1:50051") as client:
    async for event in client.generate("Once upon a time", max_tokens=50):
        if isinstance(event, Delta):
            print(event.text, end="")
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from clforge import fields, retry
from clforge.chat import Chat, Message, RenderedChat, chat_to_proto
from clforge.errors import ProtocolError, from_rpc_error
from clforge.events import Completion, Event, ModelInfo
from clforge.fields import MAX_MESSAGE_BYTES, check_size
from clforge.params import Params, Prompt, model_name, num_choices, params_to_proto, prompt_to_proto, set_timeout
from clforge.session import Session
from clforge.tokens import Decoding, Encoding, decode_request, decodings, encode_request, encodings
from clforge.updates import UpdateReader, completion_from_proto, model_info_from_proto
from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub

if TYPE_CHECKING:
    from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub

DEFAULT_TARGET = "127.0.0.1:50051"

_CALL_SECONDS = 30.0  # for calls that generate nothing

_T = TypeVar("_T")


class Client:
    """A connection to the server at `target`: host:port, dns:///host:port or unix:/path.

    Used as `async with Client(…) as client`. Connects at the first call, and again when the connection is lost. A call
    that cannot connect within `connect_seconds` raises UnreachableError. Where the server refuses and says when to come
    back, a call is tried again for up to `retry_seconds`, unless a token was delivered. Any number of tasks of one
    event loop may use it.
    """

    def __init__(
        self, target: str = DEFAULT_TARGET, *, connect_seconds: float = 5.0, retry_seconds: float = 30.0
    ) -> None:
        self.target = target
        self._connect_seconds, self._retry_seconds = connect_seconds, retry_seconds
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.target, _channel_options(self._connect_seconds))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

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
            return await self._call(self._stub.Complete(request))

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
        response = await self._ask(lambda: self._stub.RenderChat(request, timeout=_CALL_SECONDS))
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
        response = await self._ask(lambda: self._stub.Encode(request, timeout=_CALL_SECONDS))
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
        response = await self._ask(lambda: self._stub.Decode(request, timeout=_CALL_SECONDS))
        return decodings(request, response)

    async def model_info(self) -> ModelInfo:
        """The model that is being served."""
        request = pb.GetModelInfoRequest()
        response = await self._ask(lambda: self._stub.GetModelInfo(request, timeout=_CALL_SECONDS))
        return model_info_from_proto(response.model_info)

    def session(self, *, window: int = 256) -> Session:
        """Many requests on one stream. `window` is how many unread tokens of a choice the server may send ahead."""
        return Session(self._stub, self.target, window, self._retry_seconds)

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

    async def _events(self, request: pb.GenerateRequest) -> AsyncGenerator[Event, None]:
        updates = UpdateReader(num_choices(request.params))
        answered = False
        call = self._stub.Generate(request)
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


def _channel_options(connect_seconds: float) -> list[tuple[str, Any]]:
    return [
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
