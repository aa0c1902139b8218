"""The scheduler: admission, steps, figures."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from typing import Any

import pytest

from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.messages import FinishedEvent, ScheduledStep, TokenEvent
from engine_service.scheduling.sequence import FinishReason, SequenceState
from service_common.errors import (
    AlreadyExistsError,
    ConfigError,
    InternalError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from tests.engine_service.scheduler_world import chunks_of, ids_alone, make_request, make_token, make_world


def test_a_lone_request_runs_to_its_end() -> None:
    """Each of max_tokens tokens arrives once and in order, then one Finished with LENGTH (CLI-2)."""
    world = make_world()
    request = make_request(1, max_tokens=8)
    world.add(request)
    world.run_until_idle()
    *tokens, end = world.log
    ids = tuple(event.token.token_id for event in tokens if isinstance(event, TokenEvent))
    assert ids == ids_alone(request, 0, 8)
    assert isinstance(end, FinishedEvent)
    assert (end.reason, end.usage) == (FinishReason.LENGTH, (4, 0, 8, 8, 0, 0))
    world.check_empty()


def test_an_idle_scheduler_has_nothing_to_run() -> None:
    """Without requests there is no step, no deadline and no event."""
    world = make_world()
    assert not world.scheduler.has_work
    assert world.schedule() is None
    assert world.scheduler.next_deadline() is None
    assert world.scheduler.take_events() == []


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [(512, [(0, 10)]), (4, [(0, 4), (4, 4), (8, 2)]), (1, [(start, 1) for start in range(10)])],
)
def test_a_prompt_is_prefilled_in_chunks_and_the_last_one_samples(chunk: int, expected: list[tuple[int, int]]) -> None:
    """A prompt is cut at max_prefill_chunk; positions continue without gap, and only the end samples (MODEL-2)."""
    world = make_world(max_prefill_chunk=chunk)
    world.add(make_request(1, prompt_len=10))
    for start, num_tokens in expected:
        step = world.schedule()
        assert chunks_of(step) == [(1, start, num_tokens, start + num_tokens == 10)]
        assert step is not None
        world.update(step)
    assert chunks_of(world.schedule()) == [(1, 10, 1, True)]


def test_decode_goes_before_prefill_within_one_token_budget() -> None:
    """A step holds the running sequences' tokens first, then as much prefill as the budget leaves (MODEL-3)."""
    world = make_world(max_num_batched_tokens=8, max_num_seqs=4)
    world.add(make_request(1, prompt_len=3))
    world.add(make_request(2, prompt_len=3))
    world.step()
    world.add(make_request(3, prompt_len=20))
    assert chunks_of(world.schedule()) == [(1, 3, 1, True), (2, 3, 1, True), (3, 0, 6, False)]


def test_prompts_of_several_requests_share_a_step() -> None:
    """What the first prompt leaves of the budget goes to the next (MODEL-3)."""
    world = make_world(max_num_batched_tokens=10, max_num_seqs=4)
    for number in (1, 2, 3):
        world.add(make_request(number, prompt_len=4))
    assert chunks_of(world.schedule()) == [(1, 0, 4, True), (2, 0, 4, True), (3, 0, 2, False)]


def test_no_step_holds_more_than_max_num_seqs() -> None:
    """Requests beyond max_num_seqs wait; each goes in as another ends."""
    world = make_world(max_num_seqs=2)
    for number in range(1, 5):
        world.add(make_request(number, max_tokens=2))
    orders = []
    while world.scheduler.has_work:
        step = world.schedule()
        orders.append([chunk[0] for chunk in chunks_of(step)])
        assert step is not None
        world.update(step)
    assert orders == [[1, 2], [1, 2], [3, 4], [3, 4]]


def test_a_prompt_must_leave_room_for_one_token() -> None:
    """A prompt as long as the context is OUT_OF_RANGE with both numbers; one token shorter is served."""
    world = make_world(context_length=16)
    with pytest.raises(OutOfRangeError, match="the prompt has 16 tokens; the served context of 16"):
        world.add(make_request(1, prompt_len=16))
    world.add(make_request(2, prompt_len=15))
    world.run_until_idle()
    assert world.end_of(2).usage.generated_tokens == 1
    world.check_empty()


def test_a_request_larger_than_the_pool_is_refused_with_the_arithmetic() -> None:
    """What could never fit the KV cache is refused at once; what just fits is served (KV-9)."""
    world = make_world(num_blocks=4, block_size=4, max_num_batched_tokens=64)
    with pytest.raises(
        OutOfRangeError, match=r"10 prompt tokens and 8 to generate need 5 KV blocks of 4 .* pool has 4"
    ):
        world.add(make_request(1, prompt_len=10, max_tokens=8))
    world.add(make_request(2, prompt_len=10, max_tokens=7))
    world.run_until_idle()
    assert world.end_of(2).reason is FinishReason.LENGTH


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    """Beyond max_queued_requests add raises RESOURCE_EXHAUSTED with a retry time; a step makes room again."""
    world = make_world(max_queued_requests=2, retry_after_seconds=3.0)
    world.add(make_request(1))
    world.add(make_request(2))
    with pytest.raises(
        ResourceExhaustedError, match="2 requests wait, which is the limit; try again in 3 s"
    ) as refused:
        world.scheduler.add(make_request(3))
    assert refused.value.retry_after_seconds == 3.0
    world.step()
    assert world.add(make_request(3))
    world.finish()


def test_queued_prompt_tokens_are_limited() -> None:
    """Beyond max_queued_tokens add raises RESOURCE_EXHAUSTED with the numbers; a cancelled request makes room again."""
    world = make_world(max_queued_tokens=64)
    world.add(make_request(1, prompt_len=40))
    with pytest.raises(ResourceExhaustedError, match="40 prompt tokens wait and this request has 25; the limit is 64"):
        world.scheduler.add(make_request(2, prompt_len=25))
    world.scheduler.cancel(1)
    assert world.add(make_request(2, prompt_len=25))
    world.finish()


def test_a_live_id_cannot_be_used_again_and_ids_never_wrap() -> None:
    """The id of a live request is ALREADY_EXISTS; ids beyond 64 bits stay distinct (BUG-6)."""
    world = make_world()
    world.add(make_request(1))
    with pytest.raises(AlreadyExistsError, match="request 1 is already live"):
        world.scheduler.add(make_request(1))
    world.add(make_request(1 + 2**64))
    world.run_until_idle()
    assert world.end_of(1 + 2**64).request_id == 1 + 2**64
    world.finish()


def test_each_step_is_updated_exactly_once() -> None:
    """A second schedule, a second update, another step and a wrong number of tokens are errors (CLI-2)."""
    world = make_world()
    world.add(make_request(1))
    step = world.schedule()
    assert step is not None
    with pytest.raises(InternalError, match="a step is in flight"):
        world.scheduler.schedule()
    with pytest.raises(InternalError, match="the step has 1 rows of logits and 2 tokens came back"):
        world.scheduler.update(step, [make_token(1), make_token(2)])
    with pytest.raises(InternalError, match="not the one in flight"):
        world.scheduler.update(ScheduledStep(step.chunks, step.num_tokens, step.num_rows), [make_token(1)])
    world.update(step)
    with pytest.raises(InternalError, match="not the one in flight"):
        world.scheduler.update(step, [make_token(1)])


def test_stats_count_requests_blocks_and_tokens() -> None:
    """stats tells where requests are and what has been computed; a request counts by its most advanced choice."""
    world = make_world(max_num_seqs=2, context_length=64)
    world.add(make_request(1, prompt_len=8, num_choices=3))
    world.add(make_request(2, prompt_len=5))
    world.add(make_request(3, prompt_len=6, credit=0))
    world.add(make_request(4, prompt_len=7))
    world.step()
    stats, blocks = world.scheduler.stats(), world.scheduler.stats().blocks
    assert (stats.num_requests_running, stats.num_requests_waiting, stats.num_requests_paused) == (2, 2, 0)
    assert stats.num_waiting_prompt_tokens == 13
    assert (stats.num_steps, stats.prompt_tokens, stats.generation_tokens, stats.num_preemptions) == (1, 13, 2, 0)
    assert (blocks.num_blocks, blocks.num_used_blocks, blocks.block_size) == (32, 6, 4)
    assert blocks.num_used_blocks + blocks.num_cached_blocks + blocks.num_free_blocks == 32


def test_requests_lists_the_live_requests_oldest_first() -> None:
    """requests tells state, tokens, blocks, priority and age of each live request."""
    world = make_world(max_num_seqs=1)
    world.add(make_request(7, priority=-3))
    world.add(make_request(5, prompt_len=6, priority=2))
    world.clock.now += 2
    world.step()
    assert world.scheduler.requests() == [
        (7, SequenceState.QUEUED, 4, 0, 0, -3, 2.0),
        (5, SequenceState.DECODE, 6, 1, 2, 2, 2.0),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 0}, "context_length is 0; it must be at least 1"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_prefill_chunk": -1}, "max_prefill_chunk is -1"),
        ({"max_num_batched_tokens": 63}, "max_num_batched_tokens is 63; it must be at least max_num_seqs, which is 64"),
        ({"max_queued_tokens": 63}, "max_queued_tokens is 63; it must be at least context_length, which is 64"),
        ({"pause_timeout_seconds": float("nan")}, "pause_timeout_seconds is nan"),
        ({"priority_step_seconds": -1.0}, r"priority_step_seconds is -1\.0"),
        ({"max_step_stretch": 1.0}, r"max_step_stretch is 1\.0; it must be above 1"),
        ({"max_step_stretch": float("nan")}, "max_step_stretch is nan"),
        ({"min_prefill_tokens": 0}, "min_prefill_tokens is 0"),
    ],
)
def test_limits_out_of_range_or_in_contradiction_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each limit has a range, and two that contradict each other are named together (MODEL-13)."""
    with pytest.raises(ConfigError, match=message):
        make_world(**changes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_computed", 3, "sequence 1/0 is in decode in state DECODE .* 3 of 5 tokens computed"),
        ("credit", 0, "sequence 1/0 is running in state DECODE with credit 0"),
        ("state", SequenceState.PAUSED, "sequence 1/0 is running in state PAUSED"),
        ("state", SequenceState.FINISHED, "request 1 counts 1 live choices and has 0"),
    ],
)
def test_check_integrity_states_the_broken_invariant(field: str, value: object, message: str) -> None:
    """A sequence that is not where its state, credit or positions put it is found and named (KV-12, MODEL-2)."""
    world = make_world()
    world.add(make_request(1))
    step = world.schedule()
    assert step is not None
    world.update(step)
    setattr(step.chunks[0].sequence, field, value)
    with pytest.raises(IntegrityError, match=message):
        world.scheduler.check_integrity()


def test_a_step_costs_nothing_by_the_length_of_the_prompt() -> None:
    """No step copies a request: decoding after 50,000 prompt tokens allocates a few kilobytes (ISSUE-8)."""
    world = make_world(num_blocks=2000, block_size=32, context_length=60_000, max_prefill_chunk=60_000)
    request = make_request(1, prompt_len=50_000, max_tokens=100)
    world.add(request)
    scheduler = world.scheduler
    step = scheduler.schedule()
    assert step is not None
    assert step.chunks[0].sequence.request is request
    scheduler.update(step, [make_token(1)] * step.num_rows)
    while step.chunks[0].num_tokens > 1:
        step = scheduler.schedule()
        assert step is not None
        scheduler.update(step, [make_token(1)] * step.num_rows)
    tracemalloc.start()
    try:
        for _ in range(50):
            step = scheduler.schedule()
            assert step is not None
            scheduler.update(step, [make_token(1)])
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_schedule_and_update_take_half_a_millisecond_at_256_running() -> None:
    """At 256 running sequences schedule + update take at most 0.5 ms on a CPU that others leave alone."""
    world = make_world(num_blocks=256 * 16, block_size=32, context_length=512, max_num_seqs=256)
    for number in range(256):
        world.add(make_request(number, max_tokens=400))
    scheduler = world.scheduler
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        step = scheduler.schedule()
        assert step is not None
        tokens = [make_token(1)] * step.num_rows
        scheduler.update(step, tokens)
        if step.num_rows == step.num_tokens == 256:
            seconds.append(time.perf_counter() - start)
    assert len(seconds) > 150
    assert sorted(seconds)[len(seconds) // 4] <= 0.5e-3


def test_the_scheduler_imports_neither_device_nor_wire() -> None:
    """Importing the scheduler brings in no OpenCL, gRPC or protobuf."""
    script = (
        "import sys, engine_service.scheduling.scheduler; "
        "print([name for name in sys.modules if name.split('.')[0] in ('pyopencl', 'grpc', 'google', 'clforge')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
