"""The oracle: a request by itself, without scheduler, prefix cache or neighbours.

Each choice is computed from nothing: its whole prompt in one step, then a token a step, in blocks of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf
from pathlib import Path

from engine_service.engine import Engine
from engine_service.scheduling.messages import ScheduledChunk, ScheduledStep
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import FinishReason, Request, Sequence
from tests.identity.answer import Answer
from tests.in_process import engine

_BLOCK_SIZE = 32


def answers_alone(
    model: Path, kv_cache_type: str, context_length: int, requests: SequenceOf[Request]
) -> list[tuple[Answer, ...]]:
    """What each request gives when it is the only one and nothing is cached: an answer per choice."""
    options = {"kv_cache_type": kv_cache_type, "context_length": context_length, "block_size": _BLOCK_SIZE}
    with engine(model, max_num_seqs=1, max_num_batched_tokens=context_length, **options) as running:
        blocks = array("i", range(-(-context_length // _BLOCK_SIZE)))
        admit = running.scheduler._admission.sequences_of
        return [tuple(_complete(running, choice, blocks) for choice in admit(request)) for request in requests]


def _complete(running: Engine, sequence: Sequence, blocks: array[int]) -> Answer:
    sequence.block_table = blocks
    tokens: list[SampledToken] = []
    while len(tokens) < sequence.max_tokens:
        start, stop = sequence.num_computed, sequence.num_tokens
        chunk = ScheduledChunk(sequence, start, stop - start, 1)
        [token] = running._runner.run(ScheduledStep([chunk], stop - start, 1))
        if sequence.ends_with(token.token_id):
            return Answer(tuple(tokens), FinishReason.STOP, token.token_id)
        sequence.num_computed = stop
        sequence.generated_ids.append(token.token_id)
        tokens.append(token)
    return Answer(tuple(tokens), FinishReason.LENGTH)
