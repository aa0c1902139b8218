"""The engine's Prometheus metrics: docs/metrics.md lists them, under the names that the field's dashboards know.

They are fed per step and per request, never per token. What the scheduler counts anyway is read when it is scraped.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from prometheus_client import Counter, Gauge, Histogram

from engine_service.engine_loop import EngineLoop
from engine_service.scheduling.messages import FinishedEvent, ScheduledStep
from engine_service.scheduling.sequence import FinishReason
from engine_service.scheduling.stats import SchedulerStats
from engine_service.served_model import ServedModel
from service_common.errors import RequestError
from service_common.metrics import (
    COUNT_BUCKETS,
    LATENCY_BUCKETS,
    Figure,
    Figures,
    WeightedHistogram,
    make_registry,
)

STATS_SECONDS = 0.5  # a scrape waits so long for a step to end, then it gets the figures of the one before

_FIGURES = (
    Figure("clforge_num_requests_running", "Requests that take part in steps.", lambda s: s.num_requests_running),
    Figure(
        "clforge_num_requests_waiting",
        "Requests that wait for their first step, or to come back after preemption.",
        lambda s: s.num_requests_waiting,
    ),
    Figure("clforge_num_requests_paused", "Requests without credit.", lambda s: s.num_requests_paused),
    Figure(
        "clforge_num_waiting_prompt_tokens",
        "Prompt tokens of the waiting requests.",
        lambda s: s.num_waiting_prompt_tokens,
    ),
    Figure(
        "clforge_kv_cache_usage_perc",
        "Share of the KV blocks that live requests hold; 1 is all of them.",
        lambda s: s.blocks.num_used_blocks / s.blocks.num_blocks,
    ),
    Figure("clforge_kv_cache_blocks", "KV blocks of the pool.", lambda s: s.blocks.num_blocks),
    Figure("clforge_kv_cache_used_blocks", "KV blocks that live requests hold.", lambda s: s.blocks.num_used_blocks),
    Figure(
        "clforge_kv_cache_cached_blocks",
        "KV blocks that the prefix cache alone holds; whoever needs one may have it.",
        lambda s: s.blocks.num_cached_blocks,
    ),
    Figure(
        "clforge_prefix_cache_queries_total",
        "Tokens that were looked up in the prefix cache when a sequence got its KV blocks.",
        lambda s: s.blocks.prefix_query_tokens,
    ),
    Figure(
        "clforge_prefix_cache_hits_total",
        "Tokens that were found in the prefix cache, so that they need not be computed.",
        lambda s: s.blocks.prefix_hit_tokens,
    ),
    Figure(
        "clforge_kv_cache_evictions_total",
        "KV blocks taken from the prefix cache for somebody else.",
        lambda s: s.blocks.num_evictions,
    ),
    Figure(
        "clforge_kv_cache_block_copies_total",
        "KV blocks copied because somebody else holds them too.",
        lambda s: s.blocks.num_block_copies,
    ),
    Figure(
        "clforge_num_preemptions_total",
        "Times that a sequence lost its KV blocks, to be computed again.",
        lambda s: s.num_preemptions,
    ),
    Figure(
        "clforge_prompt_tokens_total",
        "Prompt tokens computed; those computed again after preemption count again.",
        lambda s: s.prompt_tokens,
    ),
    Figure("clforge_generation_tokens_total", "Tokens generated.", lambda s: s.generation_tokens),
    Figure("clforge_spec_decode_num_draft_tokens_total", "Draft tokens verified.", lambda s: s.drafted_tokens),
    Figure(
        "clforge_spec_decode_num_accepted_tokens_total",
        "Draft tokens that were sampled as well.",
        lambda s: s.accepted_tokens,
    ),
)


class EngineMetrics:
    """One engine's metrics, in a registry of their own.

    `step_done` belongs to the engine thread, the other methods to the event loop's; scrapes come on threads of theirs.
    """

    def __init__(self, loop: EngineLoop, is_ready: Callable[[], bool]) -> None:
        """`is_ready` tells whether requests can be served; it is called from any thread."""
        self._loop = loop
        self._question: Future[SchedulerStats] | None = None
        self._latest: SchedulerStats | None = None
        self._asking = threading.Lock()
        self.registry = make_registry()
        self.registry.register(Figures(_FIGURES, self._stats))
        self._make_process_metrics(is_ready)
        self._make_request_metrics()
        self._make_step_metrics()

    def model_loaded(self, model: ServedModel) -> None:
        """Names what is being served."""
        self._model.labels(model.name, model.numerics_id, model.device).set(1)

    def step_done(self, step: ScheduledStep) -> None:
        """A step has run."""
        seconds = self._loop.seconds_in_turn()
        self._step_duration.observe(seconds)
        self._step_seqs.observe(len(step.chunks))
        self._step_tokens.observe(step.num_tokens)
        self._inter_token_latency.observe(seconds, step.num_decodes)

    def first_token(self, arrival: float) -> None:
        """A request that came at `arrival`, by time.monotonic, has its first token."""
        self._time_to_first_token.observe(time.monotonic() - arrival)

    def choice_finished(self, event: FinishedEvent) -> None:
        """A choice has ended, whoever still waits for it."""
        self._success[event.reason].inc()
        timings, num_generated = event.timings, event.usage.generated_tokens
        self._e2e_latency.observe(sum(timings))
        self._queue_time.observe(timings.queue_seconds)
        self._num_prompt_tokens.observe(event.usage.prompt_tokens)
        self._num_generation_tokens.observe(num_generated)
        if num_generated:
            self._prefill_time.observe(timings.prefill_seconds)
            self._decode_time.observe(timings.decode_seconds)
        if num_generated > 1:
            self._time_per_output_token.observe(timings.decode_seconds / (num_generated - 1))

    def request_refused(self, error: RequestError) -> None:
        """A request was not taken in."""
        self._refused.labels(error.code.name).inc()

    def _make_process_metrics(self, is_ready: Callable[[], bool]) -> None:
        ready = Gauge("clforge_engine_ready", "1 while requests can be served.", registry=self.registry)
        ready.set_function(lambda: float(is_ready()))
        turn = Gauge(
            "clforge_engine_turn_age_seconds",
            "How long the engine thread has been busy with its present turn; 0 while it has nothing to do.",
            registry=self.registry,
        )
        turn.set_function(self._loop.seconds_in_turn)
        self._model = Gauge(
            "clforge_model_info",
            "1, with what is being served: the model's name, the arithmetic, the device.",
            ["name", "numerics_id", "device"],
            registry=self.registry,
        )

    def _make_request_metrics(self) -> None:
        success = Counter(
            "clforge_request_success_total",
            "Choices that have ended, of requests that were taken in, by reason.",
            ["finished_reason"],
            registry=self.registry,
        )
        self._success = {reason: success.labels(reason.value) for reason in FinishReason}
        self._refused = Counter(
            "clforge_requests_refused_total",
            "Requests that were not taken in, by status code.",
            ["code"],
            registry=self.registry,
        )
        self._time_to_first_token = self._latency(
            "clforge_time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self._e2e_latency = self._latency(
            "clforge_e2e_request_latency_seconds", "From arrival to the last token of a choice that has ended."
        )
        self._queue_time = self._latency(
            "clforge_request_queue_time_seconds", "From arrival to the first step, of a choice that has ended."
        )
        self._prefill_time = self._latency(
            "clforge_request_prefill_time_seconds",
            "From the first step to the first token, of a choice that has ended.",
        )
        self._decode_time = self._latency(
            "clforge_request_decode_time_seconds", "From the first token to the last, of a choice that has ended."
        )
        self._time_per_output_token = self._latency(
            "clforge_request_time_per_output_token_seconds",
            "Mean time between the tokens of a choice that has ended; pauses and preemptions count.",
        )
        self._num_prompt_tokens = self._count(
            "clforge_request_prompt_tokens", "Prompt tokens of a choice that has ended."
        )
        self._num_generation_tokens = self._count(
            "clforge_request_generation_tokens", "Generated tokens of a choice that has ended."
        )

    def _make_step_metrics(self) -> None:
        self._inter_token_latency = WeightedHistogram(
            "clforge_inter_token_latency_seconds",
            "Time between two tokens of a sequence that decodes: the duration of the step, once for each of them.",
            LATENCY_BUCKETS,
            self.registry,
        )
        self._step_duration = self._latency(
            "clforge_step_duration_seconds", "Duration of a step: taking in what is new, schedule, run, update."
        )
        self._step_seqs = self._count("clforge_step_num_seqs", "Sequences of a step: its batch size.")
        self._step_tokens = self._count("clforge_step_num_tokens", "Tokens computed in a step.")

    def _latency(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, buckets=LATENCY_BUCKETS, registry=self.registry)

    def _count(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, buckets=COUNT_BUCKETS, registry=self.registry)

    def _stats(self) -> SchedulerStats | None:
        """The scheduler's figures: of an earlier scrape while a step takes long, None until the model is loaded."""
        if not self._loop.loaded.done():
            return None
        with self._asking:
            if self._question is None or self._question.done():
                self._question = self._loop.query(lambda engine: engine.scheduler.stats())
            question = self._question
        with contextlib.suppress(TimeoutError):
            self._latest = question.result(STATS_SECONDS)
        return self._latest
