"""A process of the tokenizer service: which parts there are, and how they start and end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable

import grpc

from clforge.v1.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from service_common import lifecycle
from service_common.addresses import Address, bind, check_exposure, check_target, parse_address, parse_target
from service_common.health import Health
from service_common.lifecycle import EXIT_FAILURE, Shutdown, announce_ready
from service_common.metrics import exposed, metrics_address
from service_common.rpc import make_channel, make_server
from service_common.security import ServerSecurity
from service_common.tls import link_credentials
from tokenizer_service.chat_encoder import ChatEncoder
from tokenizer_service.config import TokenizerConfig
from tokenizer_service.encode_cache import EncodeCache
from tokenizer_service.encoder import Encoder
from tokenizer_service.engine_client import EngineLink
from tokenizer_service.metrics import TokenizerMetrics
from tokenizer_service.server import SERVICE, TokenizerServer
from tokenizer_service.sessions import Sessions
from tokenizer_service.vocabulary_fetch import FetchOptions


class Readiness:
    """Passes the link's state on to health and metrics, and tells who started this process when it is first up."""

    def __init__(self, health: Health, metrics: TokenizerMetrics, *, is_open: bool = True) -> None:
        """Health is told of nothing before `open`, unless it `is_open` from the start."""
        self._health, self._metrics = health, metrics
        self._is_open, self._is_up, self._announced = is_open, False, False
        self.address: Address | None = None

    def __call__(self, up: bool) -> None:
        self._is_up = up
        self._health.set_ready(up and self._is_open)
        if up:
            self._metrics.engine_connected()
        if up and not self._announced and self.address is not None:
            self._announced = True
            announce_ready(str(self.address))

    def open(self) -> None:
        """From now on the service is as ready as the link."""
        self._is_open = True
        self._health.set_ready(self._is_up)


async def serve(config: TokenizerConfig, *, opened: Callable[[], Awaitable[None]] | None = None) -> int:
    """Serves until asked to stop; returns the exit code. StartupError when it cannot serve as asked.

    With `opened` this is one of several processes on one port, which is held for them: it shares the port, and is not
    ready before `opened` returns.
    """
    address, engine = parse_address(config.grpc, "--grpc"), parse_target(config.engine, "--engine")
    security = ServerSecurity.of(config)
    check_exposure(address, insecure=security.may_be_reached)
    check_target(engine, insecure=config.insecure or config.engine_tls_ca is not None)
    scraped_at = metrics_address(config.metrics, "--metrics", insecure=config.insecure)
    is_worker = opened is not None
    server = make_server(
        *security.interceptors,
        shares_port=is_worker,
        max_connection_age_seconds=config.max_connection_age_seconds,
    )
    async with _channel(config, engine) as channel:
        parts = _Parts(config, channel, engine, is_open=not is_worker)
        parts.add_to_server(server)
        parts.readiness.address = bind(server, address, security.credentials, is_reserved=is_worker)
        with exposed(parts.metrics.registry, scraped_at), security.kept_fresh():
            await server.start()
            opening = asyncio.create_task(parts.open_after(opened)) if opened else None
            exit_code = await parts.run(server, drain_seconds=config.drain_seconds)
            if opening is not None:
                opening.cancel()
    return exit_code


def _channel(config: TokenizerConfig, engine: Address) -> grpc.aio.Channel:
    ca = config.engine_tls_ca
    if ca is None:
        return make_channel(engine)
    credentials = link_credentials(
        ca, config.engine_tls_cert, config.engine_tls_key, api_key=config.engine_api_key_file
    )
    return make_channel(engine, credentials, server_name=config.engine_tls_server_name)


class _Parts:
    """What serves, tied together."""

    def __init__(self, config: TokenizerConfig, channel: grpc.aio.Channel, engine: Address, *, is_open: bool) -> None:
        cache = EncodeCache(config.encode_cache_bytes)
        self.health = Health(SERVICE)
        self.metrics = TokenizerMetrics(lambda: self.health.ready, cache)
        self.readiness = Readiness(self.health, self.metrics, is_open=is_open)
        self._encoder = Encoder()
        self._chat_encoder = ChatEncoder(self._encoder, max_prompt_bytes=config.max_prompt_bytes)
        options = FetchOptions(config.pre_tokenizer, cache)
        self._link = EngineLink(channel, name=str(engine), on_ready=self.readiness, options=options)
        self._sessions = Sessions(
            self._link,
            self._encoder,
            self._chat_encoder,
            self.metrics,
            max_live_requests=config.max_live_requests,
            max_prompt_bytes=config.max_prompt_bytes,
        )
        self._service = TokenizerServer(
            self._link, self._sessions, self._encoder, self._chat_encoder, max_prompt_bytes=config.max_prompt_bytes
        )

    def add_to_server(self, server: grpc.aio.Server) -> None:
        add_TokenizerServiceServicer_to_server(self._service, server)
        self.health.add_to_server(server)

    async def open_after(self, opened: Callable[[], Awaitable[None]]) -> None:
        await opened()
        self.readiness.open()

    async def run(self, server: grpc.aio.Server, *, drain_seconds: float) -> int:
        """Serves until a signal, or until the link gives up, and drains; returns the exit code."""
        shutdown = Shutdown()
        connection = asyncio.create_task(self._link.run())
        end_early = functools.partial(_end_early, shutdown)
        connection.add_done_callback(end_early)
        await lifecycle.serve(server, self.health, self._sessions, shutdown, drain_seconds=drain_seconds)
        connection.remove_done_callback(end_early)
        self._encoder.close()
        await self._chat_encoder.close()
        connection.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connection
        return shutdown.exit_code


def _end_early(shutdown: Shutdown, _connection: asyncio.Task[None]) -> None:
    """The link gives up only for good; its error is raised once the service has drained."""
    shutdown.request("the engine link failed", EXIT_FAILURE)
