"""The tokenizer service's metrics and its word on the load: what clients see, counted as it happens."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import FINISH_REASON_CANCELLED, Cancel, Load, StopParams
from service_common.errors import Code, ResourceExhaustedError
from tests.prometheus import read, unfed
from tests.tokenizer_service.tokenizer_world import (
    LARGE,
    MAX_PROMPT_BYTES,
    TEXT,
    Client,
    World,
    plain,
    rpc_failure,
    world,
)
from tokenizer_service.encode_cache import MIN_CHARACTERS

WAIT_SECONDS = 5.0


def success(seen: dict[str, float], reason: str) -> float:
    """Choices that ended for `reason`."""
    return seen[f'clforge_tokenizer_request_success_total{{finished_reason="{reason}"}}']


async def test_requests_are_counted_with_what_clients_got(tmp_path: Path) -> None:
    """By reason and choice; tokens count when they are on their way to the client, times once for each request."""
    async with world(tmp_path) as service:
        await service.stub.Complete(plain(n=2))
        await service.stub.Complete(plain(stopping=StopParams(max_tokens=3)))
        seen = read(service.metrics.registry)
        assert (success(seen, "stop"), success(seen, "length"), success(seen, "error")) == (2, 1, 0)
        prompt_tokens = sum(len(submit.token_ids) for submit in service.engine.submits)
        assert seen["clforge_tokenizer_prompt_tokens_total"] == prompt_tokens
        assert seen["clforge_tokenizer_generation_tokens_total"] == 2 * len(TEXT) + 3
        counts = {"request_accept_time": 2, "time_to_first_token": 2, "e2e_request_latency": 3}
        assert {name: seen[f"clforge_tokenizer_{name}_seconds_count"] for name in counts} == counts
        assert seen["clforge_tokenizer_request_detokenize_time_seconds_sum"] > 0


async def test_refusals_are_counted_wherever_they_come_from(tmp_path: Path) -> None:
    """Those of this service and those of the engine by code; none of them is a success."""
    async with world(tmp_path) as service:
        await rpc_failure(service.stub.Complete(plain("x" * (MAX_PROMPT_BYTES + 1))))
        service.engine.refusal = ResourceExhaustedError("full", reason="QUEUE_FULL", retry_after_seconds=1.0)
        await rpc_failure(service.stub.Complete(plain()))
        await rpc_failure(service.stub.Complete(pb.CompleteRequest()))
        seen = read(service.metrics.registry)
        refused = {name: value for name, value in seen.items() if "refused" in name}
        assert refused == {
            'clforge_tokenizer_requests_refused_total{code="INVALID_ARGUMENT"}': 1,
            'clforge_tokenizer_requests_refused_total{code="OUT_OF_RANGE"}': 1,
            'clforge_tokenizer_requests_refused_total{code="RESOURCE_EXHAUSTED"}': 1,
        }
        assert not any(value for name, value in seen.items() if "success" in name)


async def test_client_that_leaves_is_counted(tmp_path: Path) -> None:
    """Its requests are neither a success nor forgotten; one that was told everything does not count."""
    async with world(tmp_path) as service:
        await service.stub.Complete(plain())
        service.engine.gate.clear()
        client = Client(service.stub)
        for request_id in (1, 2):
            await client.submit(request_id)
        await service.until(lambda: len(service.engine.live) == 2)
        seen = read(service.metrics.registry)
        assert seen["clforge_tokenizer_num_streams"] == 1
        assert seen["clforge_tokenizer_num_requests_live"] == 2
        client.call.cancel()
        await service.until(lambda: len(service.sessions) == 0)
        seen = read(service.metrics.registry)
        assert seen["clforge_tokenizer_requests_abandoned_total"] == 2
        assert seen["clforge_tokenizer_num_requests_live"] == 0
        service.engine.gate.set()


async def test_ready_follows_the_engine(tmp_path: Path) -> None:
    """While the model loads the service is not ready; each connection of the engine counts."""
    async with world(tmp_path, loading=True) as service:
        assert read(service.metrics.registry)["clforge_tokenizer_ready"] == 0
        service.engine.set_loading(False)
        await service.until(lambda: service.health.ready)
        await service.engine.stop()
        await service.until(lambda: not service.health.ready)
        await service.engine.start(service.engine_address)
        await service.until(lambda: service.health.ready, WAIT_SECONDS)
        seen = read(service.metrics.registry)
        assert (seen["clforge_tokenizer_ready"], seen["clforge_tokenizer_engine_connections_total"]) == (1, 2)


async def test_no_series_stays_unfed(tmp_path: Path) -> None:
    """A small workload of everything changes every series that the service exports."""
    async with world(tmp_path) as service:
        most: dict[str, float] = {}
        watching = asyncio.create_task(_watch(service, most))
        for _ in range(2):
            await service.stub.Complete(plain("x" * MIN_CHARACTERS))
        await service.stub.Complete(plain(stopping=StopParams(max_tokens=3)))
        await service.stub.Complete(plain(timeout=Duration(nanos=1)))
        await rpc_failure(service.stub.Complete(pb.CompleteRequest()))
        await _cancel_break_and_leave(service)
        watching.cancel()
        assert [name for name in unfed(service.metrics.registry, most) if "waiting_messages" not in name] == []


async def test_waiting_messages_are_those_that_the_engine_has_not_taken(tmp_path: Path) -> None:
    """They are seen where they are counted, in the one moment before the writer's turn."""
    async with world(tmp_path) as service:
        generation = asyncio.create_task(_complete(service))
        while service.link.num_waiting_messages == 0:
            await asyncio.sleep(0)
        assert read(service.metrics.registry)["clforge_tokenizer_num_waiting_messages"] == 1
        await generation


async def test_load_counts_requests_that_are_being_encoded(tmp_path: Path) -> None:
    """They wait as well, although the engine does not know them yet."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        async with service.busy_encoder():
            await client.submit(1, "x" * LARGE)
            await service.until(lambda: service.sessions.num_encoding_requests == 1)
            assert read(service.metrics.registry)["clforge_tokenizer_num_requests_encoding"] == 1
            assert (await _load(service)).num_requests_waiting == 1
        await client.until_finished(1)
        assert (await _load(service)).num_requests_waiting == 0
        await client.close()


async def test_watch_ends_at_drain(tmp_path: Path) -> None:
    """Without an error, at once, though the engine goes on; one that begins then is refused."""
    async with world(tmp_path) as service:
        service.engine.ends_load_watches = False
        watch = service.stub.WatchLoad(pb.WatchLoadRequest())
        assert isinstance(await watch.read(), pb.WatchLoadResponse)
        service.sessions.refuse_new()
        assert await asyncio.wait_for(watch.read(), 1) is grpc.aio.EOF
        assert await watch.code() is grpc.StatusCode.OK
        await service.until(lambda: service.engine.num_load_watchers == 0)
        assert (await rpc_failure(_first(service))).reason == "DRAINING"


async def test_watch_ends_with_the_engine(tmp_path: Path) -> None:
    """An engine that drains ends it, one that is gone is UNAVAILABLE."""
    async with world(tmp_path) as service:
        watch = service.stub.WatchLoad(pb.WatchLoadRequest())
        assert [response async for response in watch]
        assert await watch.code() is grpc.StatusCode.OK
        await service.engine.stop()
        assert (await rpc_failure(_first(service))).code == Code.UNAVAILABLE
        await service.engine.start(service.engine_address)
        await service.until(lambda: service.health.ready, WAIT_SECONDS)


async def _load(service: World) -> Load:
    response = await service.stub.WatchLoad(pb.WatchLoadRequest()).read()
    assert isinstance(response, pb.WatchLoadResponse)
    return response.load


async def _first(service: World) -> None:
    await _load(service)


async def _complete(service: World) -> None:
    await service.stub.Complete(plain())


async def _watch(service: World, most: dict[str, float]) -> None:
    while True:
        for name, value in read(service.metrics.registry).items():
            most[name] = max(value, most.get(name, 0.0))
        await asyncio.sleep(0.002)


async def _cancel_break_and_leave(service: World) -> None:
    """One request is cancelled while it is encoded, two lose their engine, one its client."""
    service.engine.gate.clear()
    client = Client(service.stub)
    async with service.busy_encoder():
        await client.submit(1, "x" * LARGE)
        await service.until(lambda: service.sessions.num_encoding_requests == 1)
        await asyncio.sleep(0.02)
        await client.send(cancel=Cancel(request_id=1))
        assert (await client.until_finished(1)).finished[0].reason == FINISH_REASON_CANCELLED
    await client.submit(2)
    await service.until(lambda: len(service.engine.live) == 1)
    await service.engine.stop()
    await client.until_finished(2)
    await service.engine.start(service.engine_address)
    await service.until(lambda: service.health.ready, WAIT_SECONDS)
    await client.submit(3)
    await service.until(lambda: len(service.engine.live) == 1)
    client.call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await client.call.code()
    await service.until(lambda: len(service.sessions) == 0)
    await asyncio.sleep(0.02)
    service.engine.gate.set()
