"""The engine's metrics: each one changes when what it counts happens, and by how much."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from clforge.v1 import engine_pb2 as pb
from clforge.v1.generation_pb2 import Update
from engine_service.engine import Engine
from engine_service.engine_loop import EngineLoop
from engine_service.metrics import EngineMetrics
from service_common.errors import DeviceError
from tests.engine_service.engine_server import (
    CONTEXT_LENGTH,
    NUM_BLOCKS,
    RunningEngine,
    cancel,
    engine_server,
    stop,
    submit,
    updates_of,
)
from tests.prometheus import read, unfed

WAIT_SECONDS = 10.0


@pytest.fixture
async def running() -> AsyncIterator[RunningEngine]:
    async with engine_server() as engine:
        yield engine


async def scrape(running: RunningEngine) -> dict[str, float]:
    """The samples now; on a thread, as the HTTP server does."""
    return await asyncio.to_thread(read, running.metrics.registry)


def total(seen: dict[str, float], name: str) -> float:
    """The sum of the series of clforge_NAME."""
    return sum(value for series, value in seen.items() if series.partition("{")[0] == f"clforge_{name}")


async def until(running: RunningEngine, **values: float) -> dict[str, float]:
    """Scrapes until each clforge_NAME, or the sum of its series, is the value given."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            seen = await scrape(running)
            if all(total(seen, name) == value for name, value in values.items()):
                return seen
            await asyncio.sleep(0.005)


async def run(running: RunningEngine, *messages: pb.GenerateTokensRequest) -> list[Update]:
    """Sends all messages on one stream and reads to its end."""
    call = running.stub.GenerateTokens()
    for message in messages:
        await call.write(message)
    await call.done_writing()
    return [update async for update in updates_of(call)]


async def test_endings_and_tokens_are_counted(running: RunningEngine) -> None:
    """By reason and choice, with prompt and generated tokens and the times of each; and the model is named."""
    await run(running, submit(1, prompt_length=20, max_tokens=10), submit(2, prompt_length=7, max_tokens=1, n=2))
    seen = await scrape(running)
    assert seen['clforge_request_success_total{finished_reason="length"}'] == 3
    assert seen['clforge_request_success_total{finished_reason="error"}'] == 0
    assert seen["clforge_generation_tokens_total"] == seen["clforge_request_generation_tokens_sum"] == 12
    assert seen["clforge_request_prompt_tokens_sum"] == 34
    assert seen['clforge_model_info{device="none",name="fake",numerics_id="test"}'] == 1
    assert seen["clforge_prompt_tokens_total"] + seen["clforge_prefix_cache_hits_total"] >= 27
    counts = {
        "time_to_first_token_seconds": 2,
        "e2e_request_latency_seconds": 3,
        "request_queue_time_seconds": 3,
        "request_prefill_time_seconds": 3,
        "request_decode_time_seconds": 3,
        "request_time_per_output_token_seconds": 1,
        "request_prompt_tokens": 3,
    }
    assert {name: seen[f"clforge_{name}_count"] for name in counts} == counts
    spent = seen["clforge_request_prefill_time_seconds_sum"] + seen["clforge_request_decode_time_seconds_sum"]
    total = seen["clforge_e2e_request_latency_seconds_sum"]
    assert spent + seen["clforge_request_queue_time_seconds_sum"] == pytest.approx(total)
    assert 0 < seen["clforge_time_to_first_token_seconds_sum"] < total


async def test_steps_are_counted_once_with_what_they_hold(running: RunningEngine) -> None:
    """As many as the scheduler ran; a token of a running sequence took the duration of its step."""
    running.runner.delay_seconds = 0.02
    await run(running, submit(1, prompt_length=9, max_tokens=6))
    seen = await scrape(running)
    num_steps = running.runner.num_steps
    for name in ("duration_seconds", "num_seqs", "num_tokens"):
        assert seen[f"clforge_step_{name}_count"] == num_steps
    assert seen["clforge_step_num_tokens_sum"] == 9 + 5
    assert seen["clforge_step_num_seqs_sum"] == num_steps == 6
    assert seen["clforge_step_duration_seconds_sum"] >= num_steps * 0.02
    assert seen["clforge_inter_token_latency_seconds_count"] == 5
    assert seen["clforge_inter_token_latency_seconds_sum"] >= 5 * 0.02


async def test_gauges_tell_where_requests_are(running: RunningEngine) -> None:
    """Running, waiting with their prompt tokens, paused; KV blocks while they are held."""
    running.runner.delay_seconds = 0.002
    call = running.stub.GenerateTokens()
    await call.write(submit(1, prompt_length=20, max_tokens=200, initial_credit=3))
    seen = await until(running, num_requests_paused=1)
    assert (seen["clforge_num_requests_running"], seen["clforge_num_requests_waiting"]) == (0, 0)
    assert seen["clforge_kv_cache_used_blocks"] == 2
    assert seen["clforge_kv_cache_usage_perc"] == 2 / NUM_BLOCKS
    assert seen["clforge_kv_cache_blocks"] == NUM_BLOCKS
    for request_id in range(2, 12):
        await call.write(submit(request_id, prompt_length=10, max_tokens=200))
    seen = await until(running, num_requests_running=8, num_requests_waiting=2)
    assert seen["clforge_num_waiting_prompt_tokens"] == 20
    call.cancel()
    seen = await until(running, num_requests_running=0, num_requests_waiting=0, request_success_total=11)
    assert seen["clforge_kv_cache_used_blocks"] == 0
    assert seen['clforge_request_success_total{finished_reason="cancelled"}'] == 11


async def test_cache_pressure_is_counted_as_the_scheduler_does() -> None:
    """Preemptions, evictions, look-ups, hits and copies are those of its statistics, and none of them is 0."""
    async with engine_server(max_num_seqs=16) as running:
        await _press(running)
        seen = await scrape(running)
        stats = await asyncio.wrap_future(running.loop.query(lambda engine: engine.scheduler.stats()))
    expected = {
        "num_preemptions_total": stats.num_preemptions,
        "kv_cache_evictions_total": stats.blocks.num_evictions,
        "kv_cache_block_copies_total": stats.blocks.num_block_copies,
        "prefix_cache_queries_total": stats.blocks.prefix_query_tokens,
        "prefix_cache_hits_total": stats.blocks.prefix_hit_tokens,
        "kv_cache_cached_blocks": stats.blocks.num_cached_blocks,
    }
    assert {name: seen[f"clforge_{name}"] for name in expected} == expected
    assert min(expected.values()) > 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"params.n": 17}, "INVALID_ARGUMENT"),
        ({"prompt_length": CONTEXT_LENGTH}, "OUT_OF_RANGE"),
        ({"vocab_sha256": "0"}, "FAILED_PRECONDITION"),
        ({"request_id": 4}, "ALREADY_EXISTS"),
    ],
)
async def test_refusals_are_counted_by_code(running: RunningEngine, change: dict[str, Any], code: str) -> None:
    """A request that was not taken in is no success, and what was wrong with it is its code."""
    await run(running, submit(5), _changed(change))
    seen = await scrape(running)
    assert seen[f'clforge_requests_refused_total{{code="{code}"}}'] == 1
    assert total(seen, "request_success_total") == 1


async def test_full_queue_and_drain_are_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that come at a bad time are counted like the rest; a Cancel of an unknown request is not."""
    monkeypatch.setattr("engine_service.metrics.STATS_SECONDS", 0.01)
    async with engine_server(max_num_seqs=1, max_queued_requests=1) as running:
        running.runner.gate.clear()
        call = running.stub.GenerateTokens()
        for message in (submit(1), submit(2), submit(3), submit(4), submit(5), cancel(99)):
            await call.write(message)
        async with asyncio.timeout(WAIT_SECONDS):
            while len(running.registry) + total(await scrape(running), "requests_refused_total") < 5:
                await asyncio.sleep(0.002)
        running.runner.gate.set()
        await _until_ended(call, 6)
        running.server.refuse_new()
        await call.write(submit(6))
        await _until_ended(call, 1)
        seen = await scrape(running)
    refused = {name: value for name, value in seen.items() if name.startswith("clforge_requests_refused_total")}
    exhausted = 5 - total(seen, "request_success_total")
    assert exhausted >= 3
    assert refused == {
        'clforge_requests_refused_total{code="RESOURCE_EXHAUSTED"}': exhausted,
        'clforge_requests_refused_total{code="UNAVAILABLE"}': 1,
    }


async def test_scrape_during_a_long_step_gives_the_figures_before_it(
    running: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for the engine thread, whose turn is seen to take long."""
    monkeypatch.setattr("engine_service.metrics.STATS_SECONDS", 0.05)
    await run(running, submit(1, max_tokens=3))
    before = await scrape(running)
    running.runner.gate.clear()
    call = running.stub.GenerateTokens()
    await call.write(submit(1))
    async with asyncio.timeout(WAIT_SECONDS):
        while (await scrape(running))["clforge_engine_turn_age_seconds"] < 0.1:
            pass
    seen = await asyncio.wait_for(scrape(running), 1)
    assert seen["clforge_generation_tokens_total"] == before["clforge_generation_tokens_total"] == 3
    running.runner.gate.set()
    await _until_ended(call, 1)
    assert (await until(running, engine_turn_age_seconds=0))["clforge_generation_tokens_total"] == 13
    call.cancel()


def test_loading_engine_has_no_figures_yet() -> None:
    """Until the model is there its series are absent, and the engine is not ready."""
    loaded = threading.Event()

    def load() -> Engine:
        loaded.wait(WAIT_SECONDS)
        raise DeviceError("open device", "DEVICE_NOT_FOUND")

    loop = EngineLoop(load, lambda events: None)
    metrics = EngineMetrics(loop, lambda: False)
    loop.start()
    seen = read(metrics.registry)
    assert seen["clforge_engine_ready"] == total(seen, "model_info") == 0
    assert "clforge_num_requests_running" not in seen
    loaded.set()
    loop.close()


async def test_no_series_stays_unfed() -> None:
    """A small workload of everything changes every series that the engine exports."""
    async with engine_server(max_num_seqs=16, pause_timeout_seconds=0.2) as running:
        most: dict[str, float] = {}
        watching = asyncio.create_task(_watch(running, most))
        await _press(running)
        await _end_in_every_way(running)
        await run(running, submit(1), _changed({"params.n": 17}))
        await asyncio.sleep(0.05)
        watching.cancel()
        assert unfed(running.metrics.registry, most) == []


async def _watch(running: RunningEngine, most: dict[str, float]) -> None:
    while True:
        for name, value in (await scrape(running)).items():
            most[name] = max(value, most.get(name, 0.0))
        await asyncio.sleep(0.005)


async def _press(running: RunningEngine) -> None:
    """More than the pool holds: sixteen sequences that grow to 15 of its 64 blocks; some once more; then a draft."""
    await run(running, *(submit(number, prompt_length=20 + number, max_tokens=200) for number in range(16)))
    await run(running, *(submit(number, prompt_length=40 + number, max_tokens=20, n=2) for number in range(4)))
    drafting = submit(0, prompt_length=20, max_tokens=20)  # the prompt holds what the runner will answer
    drafting.submit.params.speculation.max_draft_tokens = 4
    await run(running, drafting)


async def _end_in_every_way(running: RunningEngine) -> None:
    """A stop, a cancellation, a deadline, and an error: no credit for too long."""
    late = submit(3, max_tokens=200, initial_credit=0)
    late.submit.params.timeout.FromMilliseconds(50)
    call = running.stub.GenerateTokens()
    for message in (
        *(submit(number, initial_credit=2) for number in (1, 2)),
        late,
        submit(4, initial_credit=1),
    ):
        await call.write(message)
    await until(running, num_requests_paused=3)
    for message in (stop(1, 0, 1), cancel(2)):
        await call.write(message)
    await _until_ended(call, 4)
    call.cancel()


async def _until_ended(call: Any, count: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        async for update in updates_of(call):
            count -= update.HasField("finished")
            if not count:
                return


def _changed(change: dict[str, Any]) -> pb.GenerateTokensRequest:
    message = submit(6, prompt_length=change.pop("prompt_length", 5))
    for path, value in change.items():
        *parents, name = path.split(".")
        target: Any = message.submit
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)
    return message
