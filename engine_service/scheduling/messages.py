"""What goes into the scheduler and comes out of it: configuration, steps, events, figures."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from engine_service.scheduling.constraint import Constraint
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import FinishReason, Sequence, SequenceState
from engine_service.scheduling.speculation import MAX_DRAFT_TOKENS
from service_common.errors import ConfigError, RequestError

_COUNTS = (
    "context_length",
    "max_num_batched_tokens",
    "max_num_seqs",
    "max_prefill_chunk",
    "min_prefill_tokens",
    "max_queued_requests",
)
_DURATIONS = ("priority_step_seconds", "pause_grace_seconds", "pause_timeout_seconds", "retry_after_seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """The scheduler's limits. ConfigError where one is out of range or two contradict each other.

    `priority_step_seconds` is the head start that one step of priority gives: a request goes before those of a priority
    one lower that came up to so many seconds earlier. What that means for the longest wait: see `waiting_queue`.
    """

    context_length: int  # prompt and generated tokens of a sequence
    max_num_batched_tokens: int = 512  # tokens of a step
    max_num_seqs: int = 64  # sequences of a step
    num_spare_rows: int = 32  # rows of logits of a step beyond one for each sequence: for drafts, prompt_logprobs
    max_draft_tokens: int = 0  # of a draft, where the request does not say
    max_prefill_chunk: int = 512  # prefill tokens of one sequence in a step
    max_step_stretch: float = 1.7  # a step with prefill may take so many times what its decode tokens alone would take
    min_prefill_tokens: int = 4  # that a step may hold all the same
    max_queued_requests: int = 1024  # requests that wait for their first step
    max_queued_tokens: int = 1 << 20  # their prompt tokens
    priority_step_seconds: float = 10.0
    pause_grace_seconds: float = 1.0  # a shorter pause costs no blocks to newcomers while others run
    pause_timeout_seconds: float = 300.0  # a sequence out of credit for so long ends
    retry_after_seconds: float = 1.0  # what a refused client is told

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_spare_rows < 0:
            raise ConfigError(f"num_spare_rows is {self.num_spare_rows}; it must not be negative")
        if not 0 <= self.max_draft_tokens <= MAX_DRAFT_TOKENS:
            limit = f"must be between 0 and {MAX_DRAFT_TOKENS}"
            raise ConfigError(f"max_draft_tokens is {self.max_draft_tokens}; it {limit}")
        for name in _DURATIONS:
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite and not negative")
        if not self.max_step_stretch > 1:
            raise ConfigError(f"max_step_stretch is {self.max_step_stretch}; it must be above 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least max_num_seqs, which is "
                f"{self.max_num_seqs}, since each sequence of a step computes at least one token"
            )
        if self.max_queued_tokens < self.context_length:
            raise ConfigError(
                f"max_queued_tokens is {self.max_queued_tokens}; it must be at least context_length, which is "
                f"{self.context_length}, or the longest prompts could never be queued"
            )

    @property
    def max_logit_rows(self) -> int:
        """Rows of logits of a step; each takes 8 bytes of the device's memory for every token of the vocabulary."""
        return min(self.max_num_batched_tokens, self.max_num_seqs + self.num_spare_rows)


class ScheduledChunk(NamedTuple):
    """Tokens of one sequence in a step, at the positions [start, start + num_tokens): known ones, and then a draft."""

    sequence: Sequence
    start: int
    num_tokens: int
    num_rows: int  # of its last tokens, those whose logits are wanted
    draft_ids: tuple[int, ...] = ()  # guesses of what follows the newest known token

    @property
    def constraint(self) -> Constraint | None:
        """What the tokens that its rows give have to match, if they are of the output and it has a constraint."""
        gives_output = self.num_rows > 0 and self.start + self.num_tokens >= self.sequence.num_prompt_tokens
        return self.sequence.constraint if gives_output else None

    def token_ids(self) -> tuple[int, ...]:
        """The tokens to feed; O(num_tokens)."""
        stop = self.start + self.num_tokens - len(self.draft_ids)
        return self.sequence.token_ids(self.start, stop) + self.draft_ids


class BlockCopy(NamedTuple):
    """Copies the K and V of block `source`, all layers, to block `target`."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """The work of one forward pass: decode chunks first, of one token and its draft, then prefill chunks, by rank.

    `block_copies` come before the pass. No block is the target of two, and none is both source and target, so their
    order does not matter; a source may be written by the pass itself.
    """

    chunks: list[ScheduledChunk]
    num_tokens: int
    num_rows: int
    block_copies: tuple[BlockCopy, ...] = ()
    num_decodes: int = 0
    num_drafted: int = 0  # draft tokens of all decode chunks


class TokenEvent(NamedTuple):
    """A choice has grown by a token."""

    request_id: int
    choice: int
    token: SampledToken


class PromptLogprobsEvent(NamedTuple):
    """The next tokens of a prompt, beginning with its second, with their log-probabilities: before any TokenEvent."""

    request_id: int
    choice: int
    tokens: tuple[SampledToken, ...]


class Usage(NamedTuple):
    """Token counts of a choice."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, not computed when the choice started: cached, or shared with another choice
    generated_tokens: int
    delivered_tokens: int
    drafted_tokens: int
    accepted_tokens: int

    @classmethod
    def of(cls, sequence: Sequence, num_delivered: int | None) -> Usage:
        """The counts of a sequence that ends; None stands for all that was generated."""
        generated = sequence.num_generated
        delivered = generated if num_delivered is None else num_delivered
        return cls(
            prompt_tokens=sequence.num_prompt_tokens,
            cached_tokens=sequence.num_cached,
            generated_tokens=generated,
            delivered_tokens=delivered,
            drafted_tokens=sequence.num_drafted,
            accepted_tokens=sequence.num_accepted,
        )


class Timings(NamedTuple):
    """Where a choice's time went, by the scheduler's clock."""

    queue_seconds: float  # arrival to the first step that held it, or to its end
    prefill_seconds: float  # from there to the first token, or to its end
    decode_seconds: float  # first token to last

    @classmethod
    def of(cls, sequence: Sequence, now: float) -> Timings:
        """The timings of a sequence that ends `now`."""
        scheduled = sequence.first_scheduled_at
        first, last = sequence.first_token_at, sequence.last_token_at
        return cls(
            queue_seconds=(now if scheduled is None else scheduled) - sequence.request.arrival,
            prefill_seconds=0.0 if scheduled is None else (now if first is None else first) - scheduled,
            decode_seconds=0.0 if first is None or last is None else last - first,
        )


class FinishedEvent(NamedTuple):
    """A choice has ended: exactly one per choice, nothing after it."""

    request_id: int
    choice: int
    reason: FinishReason
    stop_token_id: int | None  # the end-of-generation or stop token, which had no TokenEvent
    error: RequestError | None  # set when reason is ERROR
    usage: Usage
    timings: Timings


Event = PromptLogprobsEvent | TokenEvent | FinishedEvent


class RequestInfo(NamedTuple):
    """A live request."""

    request_id: int
    state: SequenceState
    num_prompt_tokens: int
    num_generated_tokens: int
    num_blocks: int
    priority: int
    age_seconds: float
