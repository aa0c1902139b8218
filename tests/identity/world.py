"""An engine under load: random settings, too few KV blocks, and requests that come, pause, are cut short and time out.

Time is made up, so that a world runs through the same steps wherever and however slowly it runs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from engine_service.compute.kv_plan import KVCacheShape
from engine_service.engine import Engine, Runner
from engine_service.models.tensor_table import read_hyperparameters
from engine_service.scheduling.messages import FinishedEvent, ScheduledStep, TokenEvent
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import FinishReason, Request, SequenceState
from service_common.gguf_reader import GGUFReader
from tests.identity.answer import Answer, Answered
from tests.identity.traffic import Traffic
from tests.in_process import engine

CONTEXT_LENGTH = 384  # more than a KV partition


@dataclass(frozen=True)
class World:
    """What there is to run: the seed decides all the rest."""

    model: Path
    kv_cache_type: str
    threads: int  # of the process that runs it
    seed: int
    num_requests: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.model.stem}, {self.kv_cache_type}, {threads}, seed {self.seed}"


class Counts(NamedTuple):
    """How often there happened what could change bits."""

    preemptions: int = 0
    prefix_hits: int = 0
    evictions: int = 0
    copies: int = 0
    mixed_steps: int = 0
    accepted_drafts: int = 0
    refused_drafts: int = 0
    forks: int = 0
    pauses: int = 0
    cuts: int = 0

    def __add__(self, other: Any) -> Counts:
        return Counts(*map(sum, zip(self, other, strict=True)))


class Outcome(NamedTuple):
    """All requests of a world, with what they gave. `error` is what ended the world too early, if something did."""

    answered: list[Answered]
    counts: Counts
    error: str | None


def run_world(world: World) -> Outcome:
    """Runs a world to its end. Deterministic."""
    rng = random.Random(world.seed)
    with GGUFReader(world.model) as reader:
        shape = read_hyperparameters(reader)
    options = _engine_options(rng, world.kv_cache_type, shape.num_layers, shape.num_kv_heads, shape.head_dim)
    with engine(world.model, kv_cache_type=world.kv_cache_type, context_length=CONTEXT_LENGTH, **options) as loaded:
        traffic = Traffic(rng, shape.vocab_size, CONTEXT_LENGTH)
        return _Run(loaded, traffic, rng).run(world.num_requests)


def _engine_options(
    rng: random.Random, kv_cache_type: str, num_layers: int, num_kv_heads: int, head_dim: int
) -> dict[str, Any]:
    """Settings with KV blocks for one context and a bit less than another."""
    block_size, max_num_seqs = rng.choice((8, 32)), rng.choice((4, 8, 12))
    max_num_batched_tokens = max(max_num_seqs, rng.choice((1, 20, 65, 200, 512)))
    num_blocks = max(max_num_seqs, round(CONTEXT_LENGTH // block_size * rng.uniform(1.0, 1.8)))
    block_bytes = KVCacheShape(num_layers, num_kv_heads, head_dim, block_size, kv_cache_type).block_bytes
    return {
        "block_size": block_size,
        "kv_cache_bytes": str(num_blocks * block_bytes),
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_prefill_chunk": min(max_num_batched_tokens, rng.choice((5, 32, 100, 512))),
        "max_step_stretch": rng.choice((1.8, 1e6)),
    }


class _ObservedRunner:
    """Runs steps, counts those that hold both decode tokens and prefill, and makes up the time that they take."""

    def __init__(self, runner: Runner, rng: random.Random) -> None:
        self._runner, self._rng = runner, rng
        self.now = 0.0
        self.num_mixed_steps = 0

    def run(self, step: ScheduledStep) -> Sequence[SampledToken]:
        """As the runner that it stands before."""
        tokens = self._runner.run(step)
        self.now += (1e-3 + 1e-4 * step.num_tokens) * self._rng.uniform(0.5, 1.5)
        self.num_mixed_steps += 0 < step.num_decodes < len(step.chunks)
        return tokens

    def close(self) -> None:
        """Nothing: whoever opened the device closes it."""


class _Run:
    """The loop that feeds an engine, disturbs what it holds, and takes down what comes out."""

    def __init__(self, loaded: Engine, traffic: Traffic, rng: random.Random) -> None:
        self._traffic, self._rng = traffic, rng
        self._runner = _ObservedRunner(loaded._runner, rng)
        self._scheduler = loaded.scheduler
        self._scheduler._clock = lambda: self._runner.now
        self._engine = Engine(self._scheduler, self._runner, lambda: self._runner.now)
        self._requests: list[Request] = []
        self._tokens: dict[tuple[int, int], list[SampledToken]] = {}
        self._ends: dict[tuple[int, int], FinishedEvent] = {}
        self._cut: set[tuple[int, int]] = set()  # cancelled or stopped from outside
        self._num_pauses = 0

    def run(self, num_requests: int) -> Outcome:
        """Until as many requests have come and ended. An engine that breaks leaves the rest without an end."""
        error = None
        try:
            while len(self._requests) < num_requests or self._scheduler.requests():
                self._arrive(num_requests)
                self._disturb()
                self._step()
        except Exception as broken:  # of whatever kind: the engine's thread would end with it
            error = repr(broken)
        answered = [self._answered(request) for request in self._requests]
        return Outcome(answered, self._counts(answered), error)

    def _arrive(self, num_requests: int) -> None:
        """Requests come in bursts, or when there is nothing else to do."""
        if self._engine.has_work() and self._rng.random() > 0.08:
            return
        answered = [self._answered(request) for request in self._requests if (request.id, 0) in self._ends]
        for _ in range(min(self._rng.randrange(1, 10), num_requests - len(self._requests))):
            request_id = len(self._requests)
            request = self._traffic.request(request_id, self._runner.now, self._requests, answered)
            self._requests.append(request)
            self._engine.add(request)

    def _disturb(self) -> None:
        """Credit for some, an early end for a few: cancelled as a whole, or one choice stopped."""
        rng, scheduler = self._rng, self._scheduler
        for info in scheduler.requests():
            request = self._requests[info.request_id]
            if request.initial_credit is not None and rng.random() < 0.1:
                self._num_pauses += info.state is SequenceState.PAUSED
                scheduler.grant(request.id, rng.randrange(1, 6))
            if rng.random() < 0.0005:
                self._cut |= {key for key in _choices(request) if key not in self._ends}
                scheduler.cancel(request.id)
            if rng.random() < 0.0005:
                key = rng.choice(_choices(request))
                if scheduler.stop(*key, num_delivered=0):
                    self._cut.add(key)

    def _step(self) -> None:
        for event in self._engine.step():
            if isinstance(event, TokenEvent):
                self._tokens.setdefault((event.request_id, event.choice), []).append(event.token)
            elif isinstance(event, FinishedEvent):
                self._ends[event.request_id, event.choice] = event

    def _answered(self, request: Request) -> Answered:
        may_expire = request.deadline is not None
        return Answered(request, tuple(self._answer(key, may_expire) for key in _choices(request)))

    def _answer(self, key: tuple[int, int], may_expire: bool) -> Answer:
        tokens, end = tuple(self._tokens.get(key, ())), self._ends.get(key)
        if end is None:
            return Answer(tokens, None)
        is_cut = key in self._cut or (may_expire and end.reason is FinishReason.DEADLINE)
        return Answer(tokens, end.reason, end.stop_token_id, is_cut)

    def _counts(self, answered: list[Answered]) -> Counts:
        stats = self._scheduler.stats()
        return Counts(
            preemptions=stats.num_preemptions,
            prefix_hits=sum(choice == 0 and end.usage.cached_tokens > 0 for (_, choice), end in self._ends.items()),
            evictions=stats.blocks.num_evictions,
            copies=stats.blocks.num_block_copies,
            mixed_steps=self._runner.num_mixed_steps,
            accepted_drafts=stats.accepted_tokens,
            refused_drafts=stats.drafted_tokens - stats.accepted_tokens,
            forks=sum(request.num_choices - 1 for request in self._requests),
            pauses=self._num_pauses,
            cuts=sum(answer.is_cut for _, answers in answered for answer in answers),
        )


def _choices(request: Request) -> list[tuple[int, int]]:
    return [(request.id, choice) for choice in range(request.num_choices)]
