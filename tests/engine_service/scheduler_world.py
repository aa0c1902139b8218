"""What surrounds the scheduler, with no device: a clock to turn, a model of plain arithmetic, a client that checks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import Any

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.messages import (
    BlockCopy,
    Event,
    FinishedEvent,
    PromptLogprobsEvent,
    ScheduledChunk,
    ScheduledStep,
    SchedulerConfig,
    TokenEvent,
)
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import FinishReason, Request, Sequence, SequenceId
from engine_service.scheduling.speculation import Speculation
from service_common.errors import ResourceExhaustedError

VOCAB_SIZE = 40
EOG_ID = 0
_MASK = (1 << 61) - 1


def make_token(token_id: int) -> SampledToken:
    """A sampled token without log-probabilities."""
    return SampledToken(token_id, None, ())


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def make_request(
    request_id: int,
    prompt_len: int = 4,
    max_tokens: int = 8,
    *,
    arrival: float = 100.0,
    deadline: float | None = None,
    num_choices: int = 1,
    priority: int = 0,
    credit: int | None = None,
    min_tokens: int = 0,
    stop_ids: tuple[int, ...] = (),
    ignore_eos: bool = True,
    prompt_ids: tuple[int, ...] | None = None,
    stream_id: int = 0,
    cache_salt: str | None = "",
    max_draft_tokens: int | None = None,
    prompt_logprobs: int | None = None,
) -> Request:
    """A request whose prompt and seed follow from its id; no token ends it, unless asked for."""
    if prompt_ids is None:
        prompt_ids = tuple((request_id * 7 + position) % VOCAB_SIZE for position in range(prompt_len))
    return Request(
        id=request_id,
        prompt_ids=prompt_ids,
        sampling=SamplingParams(seed=request_id),
        limits=GenerationLimits(
            max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=stop_ids, ignore_eos=ignore_eos
        ),
        arrival=arrival,
        deadline=deadline,
        num_choices=num_choices,
        priority=priority,
        initial_credit=credit,
        stream_id=stream_id,
        cache_salt=cache_salt,
        prompt_logprobs=prompt_logprobs,
        speculation=Speculation(max_draft_tokens=max_draft_tokens),
    )


def _mix(state: int, value: int) -> int:
    return (state * 6364136223846793005 + value + 1442695040888963407) & _MASK


def _next_id(state: int, request: Request, choice: int, num_generated: int) -> int:
    """The sampled id; end tokens are banned below min_tokens, as the sampler does."""
    token_id = (_mix(_mix(_mix(state, request.sampling.seed), choice), 0) >> 20) % VOCAB_SIZE
    banned = request.limits.banned_ids((EOG_ID,), num_generated)
    while token_id in banned:
        token_id = (token_id + 1) % VOCAB_SIZE
    return token_id


@lru_cache(maxsize=1 << 14)
def ids_alone(request: Request, choice: int, count: int) -> tuple[int, ...]:
    """The first `count` ids of a choice as the simulated model gives them without any scheduler."""
    state, summary, ids = 0, 0, []
    for token_id in request.prompt_ids:
        state = _mix(state, token_id)
        summary = _mix(summary, state)
    for num_generated in range(count):
        ids.append(_next_id(summary, request, choice, num_generated))
        state = _mix(state, ids[-1])
        summary = _mix(summary, state)
    return tuple(ids)


class SimulatedModel:
    """A cache of one number per slot, which stands for K and V: it depends on the token and on all those before.

    Every read goes through the block table and must find what the sequence's own tokens say; a sampled id depends on
    all of them. So a wrong block, a copy that was left out, a stale position, a skipped or repeated chunk is noticed.
    """

    def __init__(self, blocks: BlockManager) -> None:
        self._block_size = blocks.block_size
        self._slots = [0] * (blocks.num_blocks * blocks.block_size)

    def run(self, step: ScheduledStep) -> list[SampledToken]:
        """One token per row of logits. Copies come first, and all chunks write before any reads."""
        self._copy(step.block_copies)
        for chunk in step.chunks:
            self._write(chunk)
        return [
            self._sample(chunk, chunk.num_tokens - num_behind)
            for chunk in step.chunks
            for num_behind in range(chunk.num_rows - 1, -1, -1)
        ]

    def _copy(self, copies: tuple[BlockCopy, ...]) -> None:
        targets = [copy.target for copy in copies]
        assert len({*targets}) == len(targets), "two copies have the same target"
        assert {*targets}.isdisjoint(copy.source for copy in copies), "the order of copies matters"
        size = self._block_size
        for source, target in copies:
            self._slots[target * size : (target + 1) * size] = self._slots[source * size : (source + 1) * size]

    def _slot(self, chunk: ScheduledChunk, position: int) -> int:
        block_table = chunk.sequence.block_table
        return block_table[position // self._block_size] * self._block_size + position % self._block_size

    def _write(self, chunk: ScheduledChunk) -> None:
        token_ids = chunk.token_ids()
        assert len(token_ids) == chunk.num_tokens
        for position, token_id in enumerate(token_ids, chunk.start):
            state = self._slots[self._slot(chunk, position - 1)] if position else 0
            self._slots[self._slot(chunk, position)] = _mix(state, token_id)

    def _sample(self, chunk: ScheduledChunk, num_tokens: int) -> SampledToken:
        """What follows the first `num_tokens` of the chunk."""
        state = summary = 0
        sequence = chunk.sequence
        token_ids = sequence.token_ids(0, chunk.start) + chunk.token_ids()[:num_tokens]
        for position, token_id in enumerate(token_ids):
            state = _mix(state, token_id)
            assert self._slots[self._slot(chunk, position)] == state, f"sequence {sequence.id} at {position}"
            summary = _mix(summary, state)
        num_generated = len(token_ids) - sequence.num_prompt_tokens
        if num_generated < 0:
            return SampledToken(sequence.request.prompt_ids[len(token_ids)], -1.0, ())
        return make_token(_next_id(summary, sequence.request, sequence.choice, num_generated))


@dataclass
class Choice:
    """What a client knows of one choice."""

    request: Request
    credit: int
    ids: list[int] = field(default_factory=list)
    scored_ids: list[int] = field(default_factory=list)  # prompt tokens that came with a log-probability
    finished: FinishedEvent | None = None


class CorruptedDrafts:
    """Guesses that are right but for one in `one_in`, which ones being the same every time; 0: all are right."""

    def __init__(self, one_in: int) -> None:
        self._one_in = one_in

    def draft(self, sequence: Sequence, max_tokens: int) -> tuple[int, ...]:
        """As DraftSource has it."""
        start = sequence.num_generated
        ids = ids_alone(sequence.request, sequence.choice, start + max_tokens)[start:]
        return tuple(self._corrupted(start + index, token_id) for index, token_id in enumerate(ids))

    def _corrupted(self, position: int, token_id: int) -> int:
        is_wrong = self._one_in and (position * 7 + token_id) % self._one_in == 0
        return (token_id + 1) % VOCAB_SIZE if is_wrong else token_id


class World:
    """A scheduler with its surroundings; every step and event is checked against what the scheduler promises."""

    def __init__(
        self, config: SchedulerConfig, num_blocks: int, block_size: int, drafter: Drafter | None = None
    ) -> None:
        self.config = config
        self.clock = Clock()
        self.blocks = BlockManager(num_blocks, block_size)
        self.scheduler = Scheduler(config, self.blocks, self.clock, frozenset({EOG_ID}), drafter)
        self.model = SimulatedModel(self.blocks)
        self.choices: dict[SequenceId, Choice] = {}
        self.live: dict[int, int] = {}  # choices that have not ended, by request
        self.step_seconds = self.token_seconds = 0.0  # what a step takes, and each of its tokens
        self.recent: deque[Choice] = deque(maxlen=4)  # the last choices that came in
        self.log: list[Event] = []
        self.reasons: Counter[FinishReason] = Counter()
        self.num_mixed_steps = 0

    def add(self, request: Request) -> bool:
        """Submits a request; False where the queue is full."""
        try:
            self.scheduler.add(request)
        except ResourceExhaustedError:
            return False
        credit = request.limits.max_tokens if request.initial_credit is None else request.initial_credit
        for choice in range(request.num_choices):
            self.choices[SequenceId(request.id, choice)] = Choice(request, credit)
        self.live[request.id] = request.num_choices
        self.recent.append(self.choices[SequenceId(request.id, 0)])
        return True

    def grant(self, request_id: int, tokens: int) -> None:
        """Gives credit to all choices of a request."""
        if self.scheduler.grant(request_id, tokens):
            for choice in range(self.choices[SequenceId(request_id, 0)].request.num_choices):
                self.choices[SequenceId(request_id, choice)].credit += tokens

    def end_of(self, request_id: int, choice: int = 0) -> FinishedEvent:
        """How a choice ended."""
        event = self.choices[SequenceId(request_id, choice)].finished
        assert event is not None, f"choice {choice} of request {request_id} is live"
        return event

    def live_ids(self) -> list[int]:
        """Requests with a choice that has not ended."""
        return list(self.live)

    def schedule(self) -> ScheduledStep | None:
        """The next step, checked."""
        has_work = self.scheduler.has_work
        expires = (self.scheduler.next_deadline() or self.clock.now + 1) <= self.clock.now
        step = self.scheduler.schedule()
        assert expires or has_work == (step is not None)
        self.scheduler.check_integrity()
        if step is not None:
            self._check_step(step)
        return step

    def step(self) -> list[Event]:
        """schedule, run, update."""
        step = self.schedule()
        events = self.scheduler.take_events() if step is None else self.update(step)
        return self.receive(events) if step is None else events

    def update(self, step: ScheduledStep, meanwhile: Callable[[], None] = lambda: None) -> list[Event]:
        """Runs a step that was scheduled and passes its tokens on; `meanwhile` happens while it is in flight."""
        tokens = self.model.run(step)
        meanwhile()
        self.clock.now += self.step_seconds + self.token_seconds * step.num_tokens
        return self.receive(self.scheduler.update(step, tokens))

    def receive(self, events: list[Event]) -> list[Event]:
        """Checks events as the client gets them."""
        self.scheduler.check_integrity()
        for event in events:
            choice = self.choices[SequenceId(event.request_id, event.choice)]
            assert choice.finished is None, f"{event} after {choice.finished}"
            if isinstance(event, TokenEvent):
                choice.ids.append(event.token.token_id)
                assert len(choice.ids) <= choice.credit, "more tokens than credit"
            elif isinstance(event, PromptLogprobsEvent):
                assert not choice.ids, "a prompt's log-probabilities come before its first token"
                choice.scored_ids += [token.token_id for token in event.tokens]
            else:
                choice.finished = event
                self.live[event.request_id] -= 1
                if not self.live[event.request_id]:
                    del self.live[event.request_id]
                self.reasons[event.reason] += 1
                self._check_finished(choice, event)
        self.log += events
        return events

    def run_until_idle(self, limit: int = 10_000) -> int:
        """Steps until nothing can run; the number of steps."""
        num_steps = 0
        while self.scheduler.has_work:
            self.step()
            num_steps += 1
            assert num_steps <= limit, f"still busy after {limit} steps"
        return num_steps

    def finish(self) -> None:
        """Gives every request all the credit it can use, runs to the end, and checks that nothing is left."""
        self.receive(self.scheduler.take_events())
        for request_id in self.live_ids():
            self.grant(request_id, self.config.context_length)
        self.run_until_idle()
        self.check_empty()

    def check_empty(self) -> None:
        """All requests have ended; nothing of them is left."""
        assert all(choice.finished is not None for choice in self.choices.values())
        assert self.live == {}
        self.scheduler.check_integrity()
        assert self.blocks.num_available_blocks == self.blocks.num_blocks
        assert self.blocks.sequence_ids() == frozenset()
        assert self.scheduler.requests() == []
        assert self.scheduler.next_deadline() is None
        stats = self.scheduler.stats()
        assert (stats.num_requests_running, stats.num_requests_waiting, stats.num_requests_paused) == (0, 0, 0)

    def _check_step(self, step: ScheduledStep) -> None:
        chunks = step.chunks
        assert 0 < len(chunks) <= self.config.max_num_seqs
        assert len({chunk.sequence.id for chunk in chunks}) == len(chunks)
        assert sum(chunk.num_tokens for chunk in chunks) == step.num_tokens <= self.config.max_num_batched_tokens
        assert sum(chunk.num_rows for chunk in chunks) == step.num_rows
        assert step.num_rows <= self.config.max_logit_rows
        assert sum(len(chunk.draft_ids) for chunk in chunks) == step.num_drafted
        in_prefill = [chunk.num_tokens != 1 + len(chunk.draft_ids) or not chunk.num_rows for chunk in chunks]
        self.num_mixed_steps += any(in_prefill) and not in_prefill[0]
        for chunk in chunks:
            sequence = chunk.sequence
            assert chunk.start == sequence.num_computed
            num_known = chunk.num_tokens - len(chunk.draft_ids)
            assert 0 < num_known <= self.config.max_prefill_chunk
            num_scores = max(0, min(num_known, chunk.start + num_known - sequence.num_scored + 1))
            num_scores = min(num_scores, sequence.num_prompt_tokens - sequence.num_scored)
            ends = chunk.start + num_known == sequence.num_tokens
            assert chunk.num_rows == num_scores + len(chunk.draft_ids) + ends
            assert len(chunk.draft_ids) < max(1, sequence.credit), "a draft may be longer than the credit"
            assert len(sequence.block_table) * self.blocks.block_size >= chunk.start + chunk.num_tokens

    def _check_finished(self, choice: Choice, event: FinishedEvent) -> None:
        request, usage = choice.request, event.usage
        ids = [*choice.ids] if event.stop_token_id is None else [*choice.ids, event.stop_token_id]
        assert tuple(ids) == ids_alone(request, event.choice, len(ids)), "neighbours changed the tokens"
        asked = request.prompt_logprobs is not None and event.choice == 0
        scored_ids = request.prompt_ids[1:] if asked and ids else request.prompt_ids[1 : 1 + len(choice.scored_ids)]
        assert choice.scored_ids == list(scored_ids) if asked else not choice.scored_ids
        assert usage.generated_tokens == len(ids)
        assert usage.prompt_tokens == len(request.prompt_ids)
        assert usage.delivered_tokens <= usage.generated_tokens
        assert usage.cached_tokens < usage.prompt_tokens
        assert min(event.timings) >= 0
        assert 0 <= usage.accepted_tokens <= min(usage.drafted_tokens, usage.generated_tokens)
        assert (event.error is not None) == (event.reason is FinishReason.ERROR)
        max_tokens = min(request.limits.max_tokens, self.config.context_length - len(request.prompt_ids))
        assert len(ids) <= max_tokens
        if event.reason is FinishReason.LENGTH:
            assert len(ids) == max_tokens


def make_world(num_blocks: int = 32, block_size: int = 4, drafter: Drafter | None = None, **changes: Any) -> World:
    """A world with room for small tests, where steps take no time; `changes` are fields of SchedulerConfig."""
    fields = {"context_length": 64, "max_step_stretch": inf} | changes
    return World(SchedulerConfig(**fields), num_blocks, block_size, drafter)


def chunks_of(step: ScheduledStep | None) -> list[tuple[int, int, int, int]]:
    """A step's chunks as (request id, start, num_tokens, num_rows)."""
    assert step is not None
    return [(chunk.sequence.request.id, chunk.start, chunk.num_tokens, chunk.num_rows) for chunk in step.chunks]
