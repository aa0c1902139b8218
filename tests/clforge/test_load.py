"""What a server is busy with, as the Python client tells it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from clforge import Client, ConnectionLostError, Load, NotFoundError, RequestInfo, RequestState, UnavailableError
from clforge.v1 import generation_pb2 as pb
from tests.clforge.scripted_server import ScriptedServer, running, status

FIGURES = {name: number for number, name in enumerate((field.name for field in pb.Load.DESCRIPTOR.fields), 1)}


async def test_live_requests_are_listed_and_cancelled_by_id(tmp_path: Path) -> None:
    """Every figure arrives in the order of the server; a cancelled one is gone, and cannot be cancelled again."""
    server = ScriptedServer()  # type: ignore[abstract]
    for number, state in enumerate((pb.REQUEST_STATE_DECODE, pb.REQUEST_STATE_PAUSED, 99)):
        info = pb.RequestInfo(global_id=str(number), state=state, age=Duration(seconds=1, nanos=500_000_000))  # type: ignore[arg-type]
        info.num_prompt_tokens, info.num_generated_tokens, info.num_blocks, info.priority = 3, 4, 5, -6
        server.live[info.global_id] = info
    async with running(server, tmp_path) as target, Client(target) as client:
        first, second, unknown = await client.list_requests()
        assert first == RequestInfo("0", RequestState.DECODE, 3, 4, 5, -6, 1.5)
        assert (second.state, unknown.state) == (RequestState.PAUSED, None)
        await client.cancel_request("1")
        assert [info.global_id for info in await client.list_requests()] == ["0", "2"]
        with pytest.raises(NotFoundError):
            await client.cancel_request("1")


async def test_load_is_told_once_or_as_it_changes(tmp_path: Path) -> None:
    """Each figure has the name that the protos give it; leaving the watch ends it at the server."""
    server = ScriptedServer()  # type: ignore[abstract]
    server.loads = [pb.Load(**FIGURES), pb.Load(num_steps=2)]
    async with running(server, tmp_path) as target, Client(target) as client:
        load = await client.load()
        assert load == Load(**FIGURES)
        assert load.kv_usage == FIGURES["num_used_blocks"] / FIGURES["num_blocks"]
        await asyncio.wait_for(server.cancelled.wait(), 5)
        server.cancelled.clear()
        async with aclosing(client.watch_load()) as loads:
            assert [(await anext(loads)).num_steps for _ in range(2)] == [FIGURES["num_steps"], 2]
        await asyncio.wait_for(server.cancelled.wait(), 5)
    assert Load(**dict.fromkeys(FIGURES, 0)).kv_usage == 0


async def test_load_is_asked_again_where_the_server_says_when(tmp_path: Path) -> None:
    """Like any call; a watch passes the refusal on, and a server that goes away is a lost connection."""
    refusal = status(grpc.StatusCode.UNAVAILABLE, retry_seconds=0.01)
    server = ScriptedServer()  # type: ignore[abstract]
    server.loads = [refusal, pb.Load(num_steps=1)]
    async with running(server, tmp_path) as target, Client(target) as client:
        assert (await client.load()).num_steps == 1
        server.loads = [refusal]
        with pytest.raises(UnavailableError):
            await anext(client.watch_load())
        server.loads = [pb.Load()]
        loads = client.watch_load()
        await anext(loads)
    with pytest.raises((ConnectionLostError, StopAsyncIteration)):
        await anext(loads)
