"""Channel and server options."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from service_common import rpc


def test_every_option_is_known_to_grpc() -> None:
    """gRPC ignores options that it does not know, so each name has to be among those in its library."""
    assert unknown_options(rpc) == []


def unknown_options(module: ModuleType) -> list[str]:
    """The options that a module names, of which there are several, and gRPC does not have."""
    names = set(re.findall(r'"(grpc\.[a-z0-9_.]+)"', Path(module.__file__ or "").read_text(encoding="utf-8")))
    spec = importlib.util.find_spec("grpc._cython.cygrpc")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).read_bytes()
    assert len(names) > 5
    return [name for name in sorted(names) if name.encode() not in library]


async def test_an_old_connection_moves_and_keeps_its_streams() -> None:
    """Past the age new calls come by another connection, and the stream that was begun goes on by the old one."""

    async def ask_peer(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield context.peer().encode()

    server = rpc.make_server(max_connection_age_seconds=0.3)
    method: Any = grpc.stream_stream_rpc_method_handler(ask_peer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Peer": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(20):

        async def peer(call: Any) -> bytes:
            await call.write(b"")
            answer: bytes = await call.read()
            return answer

        ask: Any = channel.stream_stream("/test/Peer")
        old: Any = ask()
        first = await peer(old)
        while await peer(ask()) == first:
            await asyncio.sleep(0.05)
        assert await peer(old) == first
        await old.done_writing()
        assert await old.code() is grpc.StatusCode.OK
    await server.stop(None)
