"""A tokenizer service and a fake engine in the test's own process, joined by a real connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import FINISH_REASON_ERROR, Delta, Finished, GenerationParams, Update
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub, add_TokenizerServiceServicer_to_server
from service_common.addresses import parse_target
from service_common.authentication import Authentication
from service_common.errors import RequestError
from service_common.health import Health
from service_common.rpc import make_channel, make_server
from service_common.status import from_rpc_error, from_status
from tests.tokenizer_service.fake_engine import FakeEngine, byte_tokens
from tokenizer_service.chat_encoder import ChatEncoder
from tokenizer_service.encode_cache import EncodeCache
from tokenizer_service.encoder import INLINE_CHARACTERS, Encoder
from tokenizer_service.engine_client import EngineLink
from tokenizer_service.metrics import TokenizerMetrics
from tokenizer_service.process import Readiness
from tokenizer_service.server import SERVICE, TokenizerServer
from tokenizer_service.sessions import Sessions
from tokenizer_service.vocabulary_fetch import FetchOptions

if TYPE_CHECKING:
    from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub

TEXT = "the rain in spain"
MAX_LIVE_REQUESTS = 8
LARGE = INLINE_CHARACTERS + 1
MAX_PROMPT_BYTES = 20_000


@dataclass
class World:
    """Everything that a test looks at."""

    engine: FakeEngine
    engine_address: str
    link: EngineLink
    sessions: Sessions
    health: Health
    encoder: Encoder
    chat_encoder: ChatEncoder
    metrics: TokenizerMetrics
    stub: TokenizerServiceAsyncStub

    async def until(self, condition: Callable[[], bool], seconds: float = 1.0) -> None:
        """Waits for what the service has no event for; it happens within `seconds`."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)

    @contextlib.asynccontextmanager
    async def busy_encoder(self) -> AsyncIterator[None]:
        """Keeps the encoder's thread busy, so that prompts of LARGE characters wait for it."""
        done = threading.Event()
        busy = asyncio.create_task(self.encoder.run(done.wait, LARGE))
        try:
            yield
        finally:
            done.set()
            await busy

    def is_clean(self) -> bool:
        """Whether no table of either side holds a request."""
        tables = self.link.num_live_requests, self.link.num_waiting_messages, self.sessions.num_live_requests
        return not any((*tables, len(self.sessions), len(self.engine.live)))


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    tokens: Iterable[int] | None = None,
    *,
    loading: bool = False,
    data: bytes | None = None,
    encoder: Encoder | None = None,
    authentication: Authentication | None = None,
) -> AsyncIterator[World]:
    """A service whose engine says `tokens` (default: TEXT, byte by byte) in the vocabulary of the tokenizer file
    `data`; clean tables are asserted at the end."""
    script = list(byte_tokens(TEXT) if tokens is None else tokens)
    engine = FakeEngine(lambda submit, choice: script, data)
    engine.loading = loading
    address = f"unix:{folder}/engine"
    await engine.start(address)
    server = make_server(*(() if authentication is None else (authentication,)))
    health, encoder = Health(SERVICE), encoder or Encoder()
    chat_encoder = ChatEncoder(encoder, max_prompt_bytes=MAX_PROMPT_BYTES)
    async with make_channel(parse_target(address, "--engine")) as to_engine:
        cache = EncodeCache(1 << 20)
        metrics = TokenizerMetrics(lambda: health.ready, cache)
        ready, options = Readiness(health, metrics), FetchOptions(cache=cache)
        link = EngineLink(to_engine, name=address, on_ready=ready, options=options)
        limits = {"max_live_requests": MAX_LIVE_REQUESTS, "max_prompt_bytes": MAX_PROMPT_BYTES}
        sessions = Sessions(link, encoder, chat_encoder, metrics, **limits)
        service = TokenizerServer(link, sessions, encoder, chat_encoder, max_prompt_bytes=MAX_PROMPT_BYTES)
        health.add_to_server(server)
        add_TokenizerServiceServicer_to_server(service, server)
        server.add_insecure_port(f"unix:{folder}/door")
        await server.start()
        connection = asyncio.create_task(link.run())
        fixed_window = [("grpc.http2.bdp_probe", 0)]  # else gRPC may buffer megabytes for a client that does not read
        async with grpc.aio.insecure_channel(f"unix:{folder}/door", options=fixed_window) as channel:
            stub = TokenizerServiceStub(channel)
            made = World(engine, address, link, sessions, health, encoder, chat_encoder, metrics, stub)
            if not loading:
                await made.until(lambda: health.ready)
            yield made
            await made.until(made.is_clean)
        await server.stop(None)
        connection.cancel()
        encoder.close()
        await chat_encoder.close()
    await engine.stop()


@dataclass
class Heard:
    """What one request was told so far; checks the order of updates as they come."""

    texts: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    num_tokens: dict[int, int] = field(default_factory=dict)
    deltas: dict[int, list[Delta]] = field(default_factory=dict)
    finished: dict[int, Finished] = field(default_factory=dict)
    accepted: bool = False
    next_sequence: dict[int, int] = field(default_factory=dict)

    def hear(self, update: Update) -> None:
        """Takes an update: sequence numbers have no gap, and nothing follows the end."""
        choice = update.choice
        assert update.sequence == self.next_sequence.get(choice, 0)
        assert choice not in self.finished
        self.next_sequence[choice] = update.sequence + 1
        if update.HasField("delta"):
            self.deltas.setdefault(choice, []).append(update.delta)
            self.texts[choice] = self.texts.get(choice, "") + update.delta.text
            self.token_ids.setdefault(choice, []).extend(update.delta.token_ids)
            self.num_tokens[choice] = self.num_tokens.get(choice, 0) + update.delta.num_tokens
        elif update.HasField("finished"):
            self.finished[choice] = update.finished
        else:
            assert not self.accepted
            self.accepted = update.HasField("accepted")


class Client:
    """One GenerateText stream."""

    def __init__(self, stub: TokenizerServiceAsyncStub) -> None:
        self.call = stub.GenerateText()
        self.heard: dict[int, Heard] = {}

    async def submit(self, request_id: int, prompt: str = "hello", **params: Any) -> None:
        """Starts a request."""
        submit = pb.TextSubmit(request_id=request_id, prompt=pb.Prompt(text=prompt), params=GenerationParams(**params))
        await self.send(submit=submit)

    async def send(self, **message: Any) -> None:
        """Says one thing: submit, credit, cancel or stop."""
        await self.call.write(pb.GenerateTextRequest(**message))

    async def listen(self) -> bool:
        """Takes the next message; False at the end of the stream."""
        response = await self.call.read()
        if not isinstance(response, pb.GenerateTextResponse):
            return False
        for update in response.updates:
            self.heard.setdefault(update.request_id, Heard()).hear(update)
        return True

    async def until_text(self, request_id: int, length: int) -> Heard:
        """Listens until the request has said at least so many characters."""
        while len(self.heard.get(request_id, Heard()).texts.get(0, "")) < length:
            assert await self.listen()
        return self.heard[request_id]

    async def until_finished(self, request_id: int, num_choices: int = 1) -> Heard:
        """Listens until the request has ended."""
        while len(self.heard.get(request_id, Heard()).finished) < num_choices:
            assert await self.listen()
        return self.heard[request_id]

    async def close(self) -> None:
        """Stops sending and listens to the end, which is in order."""
        await self.call.done_writing()
        while await self.listen():
            pass
        assert await self.call.code() is grpc.StatusCode.OK


def failure(heard: Heard) -> RequestError:
    """The error that ended choice 0."""
    assert heard.finished[0].reason == FINISH_REASON_ERROR
    return from_status(heard.finished[0].error)


async def rpc_failure(call: Any) -> RequestError:
    """The error that an RPC ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def plain(prompt: str = "hello", **params: Any) -> pb.CompleteRequest:
    """A request by the plain door."""
    return pb.CompleteRequest(prompt=pb.Prompt(text=prompt), params=GenerationParams(**params))
