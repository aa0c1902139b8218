"""A request, its sequences, and the life that each sequence leads.

    QUEUED ──▶ PREFILL ──▶ DECODE ◀──▶ PAUSED
                 ▲ │          │           │
                 │ └──────▶ PREEMPTED ◀───┘
                 └────────────┘
    every state ──▶ FINISHED

Only the engine thread touches what is in here: single ownership stands in for locks.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Final, NamedTuple

from engine_service.scheduling.constraint import Constraint, Grammar
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sampling_state import SamplingState
from engine_service.scheduling.speculation import SERVER_DEFAULT, Speculation
from service_common.errors import InternalError, InvalidArgumentError

MAX_CHOICES = 16
MAX_PRIORITY = 100

Rank = tuple[float, int, int]


@unique
class SequenceState(Enum):
    """Where a sequence is in its life, and what it holds of the KV cache there."""

    QUEUED = "queued"  # no step yet; no blocks
    PREFILL = "prefill"  # known tokens are being computed; holds blocks for all of them
    DECODE = "decode"  # all known tokens but the newest are computed; one token a step, and drafts
    PAUSED = "paused"  # as DECODE, but without credit: takes part in no step
    PREEMPTED = "preempted"  # its blocks were taken away: computes all known tokens again
    FINISHED = "finished"  # holds nothing


@unique
class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


TRANSITIONS: Final[dict[SequenceState, frozenset[SequenceState]]] = {
    SequenceState.QUEUED: frozenset({SequenceState.PREFILL, SequenceState.FINISHED}),
    SequenceState.PREFILL: frozenset({SequenceState.DECODE, SequenceState.PREEMPTED, SequenceState.FINISHED}),
    SequenceState.DECODE: frozenset({SequenceState.PAUSED, SequenceState.PREEMPTED, SequenceState.FINISHED}),
    SequenceState.PAUSED: frozenset({SequenceState.DECODE, SequenceState.PREEMPTED, SequenceState.FINISHED}),
    SequenceState.PREEMPTED: frozenset({SequenceState.PREFILL, SequenceState.FINISHED}),
    SequenceState.FINISHED: frozenset(),
}


class SequenceId(NamedTuple):
    """Names a sequence within the engine."""

    request_id: int
    choice: int

    def __str__(self) -> str:
        return f"{self.request_id}/{self.choice}"


class IllegalTransitionError(InternalError):
    """A sequence was told to go where no arrow leads."""

    def __init__(self, sequence_id: SequenceId, old: SequenceState, new: SequenceState) -> None:
        super().__init__(f"sequence {sequence_id} cannot go from {old.name} to {new.name}", reason="ILLEGAL_TRANSITION")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What was asked for; never changes.

    `id` is unique in the engine's life. `arrival` and `deadline` are seconds of the scheduler's clock. `initial_credit`
    is the number of tokens that each choice may generate before a grant; None stands for max_tokens. `logprobs` and
    `prompt_logprobs` count the most likely tokens to report beside each generated one, or each of the prompt's but the
    first, in choice 0; None reports nothing. Requests of one
    `stream_id` share its turns. They share cached K and V only under the same `cache_salt`, and none where it is None.
    `grammar` is what each choice's output has to match.
    """

    id: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    limits: GenerationLimits
    arrival: float
    deadline: float | None = None
    num_choices: int = 1
    priority: int = 0
    initial_credit: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stream_id: Hashable = 0
    cache_salt: Hashable | None = ""
    speculation: Speculation = SERVER_DEFAULT
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise InvalidArgumentError("token_ids", "empty", "must hold at least one token")
        if not 1 <= self.num_choices <= MAX_CHOICES:
            raise InvalidArgumentError("params.n", self.num_choices, f"must be between 1 and {MAX_CHOICES}")
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            limit = f"must be between {-MAX_PRIORITY} and {MAX_PRIORITY}"
            raise InvalidArgumentError("params.priority", self.priority, limit)
        if self.initial_credit is not None and self.initial_credit < 0:
            raise InvalidArgumentError("params.initial_credit", self.initial_credit, "must not be negative")


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request on its way.

    The known tokens are the prompt's and the generated ones; of them the first `num_computed` have their K and V in the
    cache, in the blocks of `block_table`. That table is the block manager's own; it is empty while no blocks are held.
    """

    request: Request
    choice: int
    rank: Rank  # lower is served first and preempted last; unique, never changes
    max_tokens: int  # clamped to the context
    end_token_ids: frozenset[int]
    credit: int  # tokens that may still be generated
    max_draft_tokens: int = 0  # of a draft; 0: none are made
    constraint: Constraint | None = None
    sampling_state: SamplingState | None = None  # None where only the row of logits matters
    id: SequenceId = field(init=False)
    state: SequenceState = SequenceState.QUEUED
    generated_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_scored: int = 0  # prompt tokens whose log-probability is known, or not asked for
    num_drafted: int = 0  # draft tokens that were verified
    num_accepted: int = 0  # those of them that were sampled as well
    num_cached: int = 0  # prompt tokens that did not have to be computed when it first started
    block_table: array[int] = field(default_factory=lambda: array("i"))
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    def __post_init__(self) -> None:
        self.id = SequenceId(self.request.id, self.choice)
        has_scores = self.request.prompt_logprobs is not None and self.choice == 0
        self.num_scored = 1 if has_scores else self.num_prompt_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def cache_salt(self) -> Hashable | None:
        """The request's; None, for no prefix cache, while prompt tokens have no score: what is cached has no logits."""
        return None if self.num_scored < self.num_prompt_tokens else self.request.cache_salt

    @property
    def first_row(self) -> int:
        """Position from which on logits are wanted: of the token before the first without a score, else the newest."""
        return (self.num_scored if self.num_scored < self.num_prompt_tokens else self.num_tokens) - 1

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far, a stop token included."""
        return len(self.generated_ids)

    @property
    def num_allowed(self) -> int:
        """Tokens that may be sampled now: as many as credit and max_tokens allow."""
        return min(self.credit, self.max_tokens - len(self.generated_ids))

    @property
    def num_tokens(self) -> int:
        """Known tokens: prompt and generated. Always counted from the lists themselves."""
        return len(self.request.prompt_ids) + len(self.generated_ids)

    def token_ids(self, start: int, stop: int) -> tuple[int, ...]:
        """Known tokens of the positions [start, stop); O(stop − start). 0 ≤ start ≤ stop ≤ num_tokens."""
        prompt_ids = self.request.prompt_ids
        split = len(prompt_ids)
        if stop <= split:
            return prompt_ids[start:stop]
        generated_ids = tuple(self.generated_ids[max(start - split, 0) : stop - split])
        return generated_ids if start >= split else prompt_ids[start:] + generated_ids

    def ends_with(self, token_id: int) -> bool:
        """Whether `token_id`, sampled next, ends the sequence. Below min_tokens a constraint gives such a token only
        where it allows no other."""
        if token_id not in self.end_token_ids:
            return False
        return self.constraint is not None or len(self.generated_ids) >= self.request.limits.min_tokens

    def transition(self, new: SequenceState) -> None:
        """Changes `state`. IllegalTransitionError names both states where TRANSITIONS has no such arrow."""
        if new not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(self.id, self.state, new)
        self.state = new
