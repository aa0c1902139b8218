"""An engine that comes back with another model: the tokenizer's front door goes on with the new one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clforge import Client
from clforge.v1 import generation_pb2, tokenizer_pb2
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from service_common.status import from_status
from tests.gguf_builder import tiny_llama, tokenizer_keys
from tests.integration.processes import process
from tests.integration.served import address_of
from tests.integration.test_observability import free_address

SERVICE = "clforge.v1.TokenizerService"
SECONDS = 30.0
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
TEXT = "the rain in spain"


async def running_request(stub: Any) -> Any:
    """A stream with a request that generates until it is stopped."""
    call = stub.GenerateText()
    submit = tokenizer_pb2.TextSubmit(request_id=1, prompt=tokenizer_pb2.Prompt(text=TEXT))
    submit.params.stopping.ignore_eos = True
    await call.write(tokenizer_pb2.GenerateTextRequest(submit=submit))
    while not any(update.HasField("delta") for update in (await call.read()).updates):
        pass
    return call


async def end_of(call: Any) -> generation_pb2.Finished:
    """How the stream's request ends."""
    while True:
        for update in (await call.read()).updates:
            if update.HasField("finished"):
                finished: generation_pb2.Finished = update.finished
                return finished


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what other processes do."""
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_front_door_follows_the_engine_to_another_model(tmp_path: Path, workers: str) -> None:
    """The engine is killed amid a request and comes back with another vocabulary and name.

    The request ends in-band, the service is not ready meanwhile, and then serves the new model: its name, its ids, its
    text, for a session that stayed open as well.
    """
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    tiny_llama(first, seed=1, context_length=4096, keys={"general.name": "first"})
    pieces = tokenizer_keys()["tokenizer.ggml.tokens"]
    reversed_pieces = {"tokenizer.ggml.tokens": pieces[:259] + pieces[:258:-1]}
    tiny_llama(second, seed=2, context_length=4096, keys={"general.name": "second", **reversed_pieces})
    engine_address = free_address()
    with process("engine", "--model", str(first), "--engine", engine_address) as engine:
        address_of(engine)
        options = ("--engine", engine_address, "--grpc", "127.0.0.1:0", "--workers", workers)
        with process("tokenizer", *options) as tokenizer:
            address = address_of(tokenizer)
            async with Client(address) as client, grpc.aio.insecure_channel(address) as channel:
                await follow(client, channel, engine, second, engine_address)
            tokenizer.terminate()
            assert tokenizer.wait(SECONDS) == 0


async def follow(client: Client, channel: grpc.aio.Channel, engine: Any, second: Path, engine_address: str) -> None:
    """Kills the engine, starts it with the second model, and looks at what clients see."""
    health, stub = health_pb2_grpc.HealthStub(channel), TokenizerServiceStub(channel)

    async def is_serving() -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        return bool(answer.status == SERVING)

    async def is_not_serving() -> bool:
        return not await is_serving()

    assert await is_serving()
    assert (await client.model_info()).name == "first"
    ids = await client.encode(TEXT)
    call = await running_request(stub)
    engine.kill()
    engine.wait()
    end = await asyncio.wait_for(end_of(call), SECONDS)
    error = from_status(end.error)
    assert (end.reason, error.code.name) == (generation_pb2.FINISH_REASON_ERROR, "UNAVAILABLE")
    assert error.retry_after_seconds is not None
    assert end.usage.prompt_tokens == len(ids)
    await until(is_not_serving)
    with process("engine", "--model", str(second), "--engine", engine_address) as restarted:
        address_of(restarted)
        await until(is_serving)
        completion = await client.complete(TEXT, max_tokens=4, ignore_eos=True)
        assert completion.choices[0].finished.usage.generated_tokens == 4
        assert (await client.model_info()).name == "second"
        new_ids = await client.encode(TEXT)
        assert new_ids != ids
        assert await client.decode(new_ids) == TEXT
        submit = tokenizer_pb2.TextSubmit(request_id=2, prompt=tokenizer_pb2.Prompt(text=TEXT))
        submit.params.stopping.max_tokens = 3
        submit.params.stopping.ignore_eos = True
        await call.write(tokenizer_pb2.GenerateTextRequest(submit=submit))
        assert (await asyncio.wait_for(end_of(call), SECONDS)).usage.generated_tokens == 3
        call.cancel()
