"""The tokenizer service's Prometheus metrics: docs/metrics.md lists them.

Times are those that clients see, but for the network: they end when an update is ready for the client's stream. Metrics
are fed per request and per batch of tokens; what the service counts anyway is read when it is scraped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from clforge.v1 import generation_pb2 as pb
from service_common.errors import Code
from service_common.metrics import LATENCY_BUCKETS, Figure, Figures, make_registry
from service_common.outbox import UpdateWriter
from service_common.status import from_status
from tokenizer_service.encode_cache import EncodeCache


class Counts(NamedTuple):
    """What the service holds at one moment."""

    num_streams: int
    num_live_requests: int
    num_encoding_requests: int
    num_waiting_messages: int
    num_waiting_characters: int


_GAUGES = (
    Figure("clforge_tokenizer_num_streams", "Open streams of clients.", lambda c: c.num_streams),
    Figure(
        "clforge_tokenizer_num_requests_live",
        "Requests taken in whose end the client has not been sent.",
        lambda c: c.num_live_requests,
    ),
    Figure(
        "clforge_tokenizer_num_requests_encoding",
        "Requests whose prompt is being encoded, so that the engine does not know them yet.",
        lambda c: c.num_encoding_requests,
    ),
    Figure(
        "clforge_tokenizer_num_waiting_messages",
        "Messages to the engine that it has not taken yet.",
        lambda c: c.num_waiting_messages,
    ),
    Figure(
        "clforge_tokenizer_num_waiting_characters",
        "Characters of the large texts that wait for a thread to encode them.",
        lambda c: c.num_waiting_characters,
    ),
)
_COUNTERS = (
    Figure("clforge_tokenizer_prompt_tokens_total", "Prompt tokens of accepted requests.", lambda m: m.prompt_tokens),
    Figure("clforge_tokenizer_generation_tokens_total", "Tokens sent to clients.", lambda m: m.generation_tokens),
)
_CACHE = (
    Figure(
        "clforge_tokenizer_encode_cache_queries_total",
        "Characters of long texts that were looked up in the encode cache.",
        lambda cache: cache.num_queried_characters,
    ),
    Figure(
        "clforge_tokenizer_encode_cache_hits_total",
        "Characters that were found in the encode cache, so that they need not be encoded.",
        lambda cache: cache.num_hit_characters,
    ),
    Figure(
        "clforge_tokenizer_encode_cache_bytes", "Memory that the encode cache holds.", lambda cache: cache.num_bytes
    ),
)
_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
    pb.FINISH_REASON_DEADLINE: "deadline",
    pb.FINISH_REASON_ERROR: "error",
}


class TokenizerMetrics:
    """One service's metrics, in a registry of their own. Belongs to the event loop; scrapes come on threads."""

    def __init__(self, is_ready: Callable[[], bool], cache: EncodeCache) -> None:
        """`is_ready` tells whether requests can be served; it is called from any thread. `cache` is told of as well."""
        self.registry = make_registry()
        self.prompt_tokens = self.generation_tokens = 0
        self.registry.register(Figures(_COUNTERS, lambda: self))
        self.registry.register(Figures(_CACHE, lambda: cache))
        ready = Gauge("clforge_tokenizer_ready", "1 while requests can be served.", registry=self.registry)
        ready.set_function(lambda: float(is_ready()))
        self._connections = Counter(
            "clforge_tokenizer_engine_connections_total", "Times that the engine was connected.", registry=self.registry
        )
        self._success = Counter(
            "clforge_tokenizer_request_success_total",
            "Choices that have ended, of requests that were taken in, by reason.",
            ["finished_reason"],
            registry=self.registry,
        )
        for reason in _REASONS.values():
            self._success.labels(reason)  # so that each is there from the start, as 0
        self._refused = Counter(
            "clforge_tokenizer_requests_refused_total",
            "Requests that were not taken in, here or by the engine, by status code.",
            ["code"],
            registry=self.registry,
        )
        self._abandoned = Counter(
            "clforge_tokenizer_requests_abandoned_total",
            "Requests whose client left before it was sent their end.",
            registry=self.registry,
        )
        self._accept_time = self._latency(
            "clforge_tokenizer_request_accept_time_seconds",
            "From a request's arrival until the engine has accepted it: encoding, and the way to the engine and back.",
        )
        self._time_to_first_token = self._latency(
            "clforge_tokenizer_time_to_first_token_seconds", "From a request's arrival to its first text."
        )
        self._e2e_latency = self._latency(
            "clforge_tokenizer_e2e_request_latency_seconds", "From arrival to the end of a choice."
        )
        self._detokenize_time = self._latency(
            "clforge_tokenizer_request_detokenize_time_seconds", "Spent on turning the tokens of a choice into text."
        )

    def read_counts(self, counts: Callable[[], Counts]) -> None:
        """Says where the gauges come from; `counts` is called from any thread. To be called once."""
        self.registry.register(Figures(_GAUGES, counts))

    def engine_connected(self) -> None:
        """The link to the engine has come up."""
        self._connections.inc()

    def refused(self, code: Code) -> None:
        """A request was not taken in."""
        self._refused.labels(code.name).inc()

    def abandoned(self, num_requests: int) -> None:
        """A client has left."""
        self._abandoned.inc(num_requests)

    def request(self, updates: UpdateWriter) -> UpdateWriter:
        """A request has arrived: where its updates are to go, so that they are counted on their way to `updates`."""
        return _Meter(self, updates)

    def _latency(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, buckets=LATENCY_BUCKETS, registry=self.registry)


class _Meter:
    """Counts what one request is told."""

    def __init__(self, metrics: TokenizerMetrics, updates: UpdateWriter) -> None:
        self._metrics, self._updates = metrics, updates
        self._arrival = time.monotonic()
        self._accepted = self._has_text = False

    def accepted(self, request_id: int, accepted: pb.Accepted) -> None:
        self._accepted = True
        self._metrics.prompt_tokens += accepted.num_prompt_tokens
        self._metrics._accept_time.observe(time.monotonic() - self._arrival)
        self._updates.accepted(request_id, accepted)

    def delta(self, request_id: int, choice: int, delta: pb.Delta) -> None:
        if not self._has_text and delta.section != pb.SECTION_PROMPT:
            self._has_text = True
            self._metrics._time_to_first_token.observe(time.monotonic() - self._arrival)
        self._metrics.generation_tokens += delta.num_tokens
        self._updates.delta(request_id, choice, delta)

    def finished(self, request_id: int, choice: int, finished: pb.Finished) -> None:
        if finished.HasField("error") and not self._accepted:
            self._metrics.refused(from_status(finished.error).code)
        else:
            self._metrics._success.labels(_REASONS.get(finished.reason, "unknown")).inc()
            self._metrics._e2e_latency.observe(time.monotonic() - self._arrival)
            self._metrics._detokenize_time.observe(finished.timings.detokenize.ToNanoseconds() * 1e-9)
        self._updates.finished(request_id, choice, finished)
