"""The scheduler's figures at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockStats:
    """What the KV blocks are used for, and what the prefix cache has done since the start."""

    num_blocks: int  # of the pool: used + cached + free
    num_used_blocks: int  # of live sequences
    num_cached_blocks: int  # held by the prefix cache alone: whoever needs a block may have them
    num_free_blocks: int  # that hold nothing
    block_size: int  # tokens
    num_prefix_queries: int  # look-ups, one per admission of a sequence that may use the cache; this and what follows:
    prefix_query_tokens: int  # since the start; the tokens that were looked up
    prefix_hit_tokens: int  # those of them that were found
    num_evictions: int  # cached blocks given away
    num_block_copies: int  # copies on write


class RequestCounts(NamedTuple):
    """Where the live requests are, as `SchedulerStats` has it."""

    num_requests_running: int
    num_requests_waiting: int
    num_requests_paused: int
    num_waiting_prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerStats:
    """How busy the scheduler is. A request counts where its most advanced choice is."""

    num_requests_running: int  # they hold blocks and take part in steps
    num_requests_waiting: int  # for their first step, or to come back after preemption
    num_requests_paused: int  # without credit
    num_waiting_prompt_tokens: int  # prompt tokens of the waiting requests
    num_steps: int  # this and what follows: since the start
    prompt_tokens: int  # computed in prefill, what is computed again after preemption included
    generation_tokens: int
    num_preemptions: int
    drafted_tokens: int
    accepted_tokens: int
    blocks: BlockStats
