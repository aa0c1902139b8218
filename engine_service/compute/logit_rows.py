"""What the sampler is told of each row of logits in a step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engine_service.compute.row_params import RowParams
from engine_service.constraints.mask_threads import Masks
from engine_service.scheduling.adjustments import NO_ADJUSTMENTS
from engine_service.scheduling.messages import ScheduledChunk
from engine_service.scheduling.sampling_params import SamplingParams
from engine_service.scheduling.sequence import Request, Sequence

_GREEDY = SamplingParams(seed=0, temperature=0.0)


def logit_rows(
    chunk: ScheduledChunk, eog_ids: tuple[int, ...], vocab_size: int, masks: Masks | None = None
) -> Iterator[RowParams]:
    """How the token of each of the chunk's rows is chosen.

    Within the prompt it is the prompt's own next token, whose log-probability is wanted. Else the row gives what
    follows the sequence's known tokens and a tail: that much of the draft as the row has seen. So it is chosen as it
    would be in a step of its own, had the tail been accepted. `masks` as Constraint.masks gives them for the draft.
    """
    stop = chunk.start + chunk.num_tokens
    for num_behind in range(chunk.num_rows - 1, -1, -1):
        position = stop - num_behind
        if position < chunk.sequence.num_prompt_tokens:
            yield _prompt_row(chunk.sequence.request, position, vocab_size)
        else:
            tail = chunk.draft_ids[: len(chunk.draft_ids) - num_behind]
            yield _output_row(chunk.sequence, tail, position, eog_ids, None if masks is None else masks[len(tail)])


def _prompt_row(request: Request, position: int, vocab_size: int) -> RowParams:
    token_id = request.prompt_ids[position]
    allowed = np.zeros((vocab_size + 31) // 32, np.uint32)
    allowed[token_id // 32] = 1 << token_id % 32
    return RowParams(_GREEDY, position, allowed=allowed, num_logprobs=request.prompt_logprobs)


def _output_row(
    sequence: Sequence,
    tail: tuple[int, ...],
    position: int,
    eog_ids: tuple[int, ...],
    mask: NDArray[np.uint32] | None,
) -> RowParams:
    request, state = sequence.request, sequence.sampling_state
    if mask is None and request.sampling.allowed is not None:
        mask = request.sampling.allowed.mask
    return RowParams(
        sampling=request.sampling,
        position=position,
        choice=sequence.choice,
        banned_ids=request.limits.banned_ids(eog_ids, sequence.num_generated + len(tail)),
        num_logprobs=request.logprobs,
        allowed=mask,
        adjustments=NO_ADJUSTMENTS if state is None else state.adjustments(tail),
        max_surprise=0 if state is None else state.max_surprise,
    )
