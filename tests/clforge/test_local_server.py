"""What a command that starts a server of its own hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from clforge.cli.local_server import tell_loading
from clforge.v1 import engine_pb2, engine_pb2_grpc


class LoadingEngine(engine_pb2_grpc.EngineServiceServicer):
    """Loads while it is asked twice; then it is there, or `fails`."""

    def __init__(self, fails: grpc.StatusCode | None = None) -> None:
        self.asked = 0
        self.fails = fails

    async def GetModelInfo(
        self, request: engine_pb2.EngineServiceGetModelInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.EngineServiceGetModelInfoResponse:
        """The model, or how far it is."""
        self.asked += 1
        if self.asked <= 2:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the model is loading ({50 * self.asked} %)")
        if self.fails:
            await context.abort(self.fails, "")
        return engine_pb2.EngineServiceGetModelInfoResponse()


async def test_progress_of_loading_is_told_until_the_model_is_there(tmp_path: Path) -> None:
    """In the engine's words; an engine that cannot tell is not asked again."""
    for engine in (LoadingEngine(), LoadingEngine(grpc.StatusCode.UNIMPLEMENTED)):  # type: ignore[abstract]
        server = grpc.aio.server()
        engine_pb2_grpc.add_EngineServiceServicer_to_server(engine, server)
        server.add_insecure_port(f"unix:{tmp_path}/e")
        await server.start()
        told: list[str] = []
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/e") as channel:
            await tell_loading(channel, told.append)
        await server.stop(None)
        assert told == ["the model is loading (50 %)", "the model is loading (100 %)"]
