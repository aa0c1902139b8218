"""The load as clients are told of it: the engine's, with the requests that it does not know yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from clforge.v1.engine_pb2 import EngineServiceWatchLoadRequest, EngineServiceWatchLoadResponse
from clforge.v1.generation_pb2 import Load
from tokenizer_service.engine_client import EngineLink
from tokenizer_service.sessions import Sessions

EngineWatch = grpc.aio.UnaryStreamCall[EngineServiceWatchLoadRequest, EngineServiceWatchLoadResponse]


async def told_load(watch: EngineWatch, link: EngineLink, sessions: Sessions) -> AsyncIterator[Load]:
    """The load whenever the engine tells it on `watch`, until the engine or this service drains.

    Requests whose prompt is still being encoded here count as waiting. UnavailableError where the link breaks.
    """
    while True:
        reading = asyncio.ensure_future(link.ask(watch.read()))
        events: list[asyncio.Future[Any]] = [reading, sessions.draining]
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        if sessions.draining.done():
            reading.cancel()
            return
        response = reading.result()
        if not isinstance(response, EngineServiceWatchLoadResponse):
            return
        response.load.num_requests_waiting += sessions.num_encoding_requests
        yield response.load
