"""What the scheduler itself costs a step: schedule and update, without arrays, device or RPCs.

    python -m benchmarks.serving --only scheduler

256 sequences run at once. As one ends the next comes in, whose prompt begins like all others, so that steps admit, find
prefixes, copy, grow, cache whole blocks and evict old ones as in service.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import NamedTuple

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.messages import ScheduledStep, SchedulerConfig
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Request

NUM_RUNNING = 256
NUM_STEPS = 2000
PROMPT_TOKENS, SHARED_TOKENS, OUTPUT_TOKENS = 200, 150, 300
BLOCK_SIZE = 32
MICROSECOND = 1e-6


class StepCost(NamedTuple):
    """Seconds of schedule + update in steps at full load."""

    median: float
    p99: float


def measure(num_running: int = NUM_RUNNING, num_steps: int = NUM_STEPS) -> StepCost:
    """The cost of a step while `num_running` sequences run, over `num_steps` steps."""
    scheduler = _scheduler(num_running)
    next_id = 0
    seconds: list[float] = []
    gc.collect()
    while len(seconds) < num_steps:
        stats = scheduler.stats()
        for _ in range(num_running - stats.num_requests_running - stats.num_requests_waiting):
            scheduler.add(_request(next_id))
            next_id += 1
        started = time.perf_counter()
        step = scheduler.schedule()
        scheduled = time.perf_counter()
        assert step is not None
        tokens = _tokens(step)
        sampled = time.perf_counter()
        scheduler.update(step, tokens)
        if len(step.chunks) == num_running:
            seconds.append(time.perf_counter() - sampled + scheduled - started)
    return StepCost(statistics.median(seconds), statistics.quantiles(seconds, n=100)[98])


def _scheduler(num_running: int) -> Scheduler:
    config = SchedulerConfig(context_length=512, max_num_seqs=num_running, max_num_batched_tokens=4 * num_running)
    num_blocks = num_running * -(-(PROMPT_TOKENS + OUTPUT_TOKENS) // BLOCK_SIZE) * 5 // 4
    return Scheduler(config, BlockManager(num_blocks, BLOCK_SIZE))


def _request(number: int) -> Request:
    """Lengths differ, so that requests do not end together."""
    shared = tuple(range(SHARED_TOKENS))
    own = tuple(1000 + number * PROMPT_TOKENS + position for position in range(PROMPT_TOKENS - SHARED_TOKENS))
    return Request(
        id=number,
        prompt_ids=shared + own,
        sampling=SamplingParams(seed=number),
        limits=GenerationLimits(max_tokens=OUTPUT_TOKENS // 2 + number * 37 % (OUTPUT_TOKENS // 2), ignore_eos=True),
        arrival=float(number),
    )


def _tokens(step: ScheduledStep) -> list[SampledToken]:
    samples = [chunk.sequence for chunk in step.chunks if chunk.num_rows]
    return [SampledToken(sequence.num_tokens * 7 + sequence.request.id, None, ()) for sequence in samples]


def figures(cost: StepCost) -> dict[str, float]:
    """The cost as the serving bench reports it."""
    return {"step_p50_us": cost.median / MICROSECOND, "step_p99_us": cost.p99 / MICROSECOND}
