"""A whole server on this machine: an engine behind a private socket, a tokenizer in front, both children of ours."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from clforge.cli import exit_codes
from clforge.v1.engine_pb2 import EngineServiceGetModelInfoRequest
from clforge.v1.engine_pb2_grpc import EngineServiceStub
from engine_service.config import EngineConfig
from service_common.addresses import check_exposure, parse_address, private_socket_folder
from service_common.child import KILL_SECONDS, Child, describe_exit
from service_common.lifecycle import FLUSH_SECONDS
from service_common.options import to_argv
from service_common.security import ServerSecurity
from tokenizer_service.config import TokenizerConfig

if TYPE_CHECKING:
    from clforge.v1.engine_pb2_grpc import EngineServiceAsyncStub

_T = TypeVar("_T")


class ServerFailed(Exception):
    """A child ended by itself. `exit_code` is ours; str() tells why, and is empty when the child has said so itself."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def print(self) -> None:
        """Tells the user why on standard error, unless the child did."""
        if str(self):
            sys.stderr.write(f"clforge: {self}\n")


class LocalServer:
    """Both children; see `local_server`."""

    def __init__(self, engine: EngineConfig, tokenizer: TokenizerConfig) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._starting: list[asyncio.Task[Child]] = []
        self.had_to_kill = False

    async def start(self, tell: Callable[[str], None] = lambda _: None) -> str:
        """Returns the address to connect to, when the first request can be served. `tell` hears how loading goes on."""
        engine = await self._start_child("engine", "engine_service", to_argv(self._engine))
        tokenizer = await self._start_child("tokenizer", "tokenizer_service", to_argv(self._tokenizer), held=True)
        async with grpc.aio.insecure_channel(self._engine.engine, _FAST_RECONNECT) as channel:
            # The engine binds once it has understood the model file: until then it alone has something to say.
            await self._while_alive(channel.channel_ready(), engine)
            tokenizer.release()
            telling = asyncio.create_task(tell_loading(channel, tell))
            try:
                return await self._while_alive(tokenizer.announced(), engine, tokenizer)
            finally:
                telling.cancel()

    async def while_alive(self, awaited: Coroutine[Any, Any, _T]) -> _T:
        """The result of `awaited`, once started; ServerFailed when a child ends before it is there."""
        return await self._while_alive(awaited, *[await task for task in self._starting])

    def hurry(self) -> None:
        """Ends what `stop` waits for: requests still in flight are cancelled."""
        for task in self._starting:
            if task.done():
                task.result().interrupt()

    async def stop(self) -> None:
        """Lets requests in flight finish, then ends the tokenizer, then the engine. None is left behind."""
        seconds = self._tokenizer.drain_seconds + FLUSH_SECONDS + KILL_SECONDS
        for task in reversed(self._starting):
            child = await task
            self.had_to_kill |= not await child.stop(seconds)

    async def _start_child(self, name: str, module: str, arguments: list[str], *, held: bool = False) -> Child:
        # Shielded and kept, so that a child whose start was given up is stopped all the same.
        self._starting.append(asyncio.create_task(Child.start(name, module, arguments, held=held)))
        return await asyncio.shield(self._starting[-1])

    async def _while_alive(self, awaited: Coroutine[Any, Any, _T], *children: Child) -> _T:
        """The result of `awaited`; ServerFailed when one of the children ends before."""
        result = asyncio.ensure_future(awaited)
        endings = {asyncio.create_task(child.ended()): child for child in children}
        try:
            await asyncio.wait([result, *endings], return_when=asyncio.FIRST_COMPLETED)
            for ending, child in endings.items():
                if ending.done() and not result.done():
                    raise _failure(child.name, ending.result())
            return await result
        finally:
            for task in (result, *endings):
                task.cancel()


@contextlib.asynccontextmanager
async def local_server(engine: EngineConfig, tokenizer: TokenizerConfig | None = None) -> AsyncIterator[LocalServer]:
    """A server that can be started, and is stopped at the end of the block.

    The engine's address is replaced by a private socket, and without `tokenizer` so is the tokenizer's. ConfigError for
    an address that cannot be used.
    """
    with private_socket_folder() as folder:
        link = f"unix:{folder / 'engine.sock'}"
        if tokenizer is None:
            front = f"unix:{folder / 'tokenizer.sock'}"
            tokenizer = TokenizerConfig(grpc=front, log_format=engine.log_format, log_level=engine.log_level)
        security = ServerSecurity.of(tokenizer)
        check_exposure(parse_address(tokenizer.grpc, "--grpc"), insecure=security.may_be_reached)
        # What secures the tokenizer's port is not needed on a socket that only we can reach.
        engine = replace(engine, engine=link, tls_cert=None, tls_key=None, tls_client_ca=None, api_keys=None)
        server = LocalServer(engine, replace(tokenizer, engine=link))
        try:
            yield server
        finally:
            await server.stop()


async def tell_loading(channel: grpc.aio.Channel, tell: Callable[[str], None]) -> None:
    """Has `tell` hear what the engine says of loading, until its model is there."""
    stub: EngineServiceAsyncStub = EngineServiceStub(channel)
    while True:
        try:
            await stub.GetModelInfo(EngineServiceGetModelInfoRequest())
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                return
            tell(error.details() or "")
        await asyncio.sleep(_LOADING_LOOK_SECONDS)


_LOADING_LOOK_SECONDS = 0.25
_FAST_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]


def _failure(name: str, code: int) -> ServerFailed:
    if code == exit_codes.USAGE:
        return ServerFailed(exit_codes.USAGE, "")
    return ServerFailed(exit_codes.FAILED, f"the {name} {describe_exit(code)}; its log tells more")
