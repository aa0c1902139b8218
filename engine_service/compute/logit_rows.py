"""What the sampler is told of each row of logits in a step."""

from __future__ import annotations

from collections.abc import Iterator

from engine_service.compute.sampler import RowParams
from engine_service.scheduling.messages import ScheduledChunk


def logit_rows(chunk: ScheduledChunk, eog_ids: tuple[int, ...]) -> Iterator[RowParams]:
    """How the token of each of the chunk's rows is chosen.

    A row gives what follows the sequence's known tokens and a tail: that much of the draft as the row has seen. So it
    is chosen as it would be in a step of its own, had the tail been accepted.
    """
    request, sequence = chunk.sequence.request, chunk.sequence
    stop = chunk.start + chunk.num_tokens
    for num_behind in range(chunk.num_rows - 1, -1, -1):
        tail = chunk.draft_ids[: len(chunk.draft_ids) - num_behind]
        yield RowParams(
            sampling=request.sampling,
            position=stop - num_behind,
            choice=sequence.choice,
            banned_ids=request.limits.banned_ids(eog_ids, sequence.num_generated + len(tail)),
            num_logprobs=request.logprobs,
        )
