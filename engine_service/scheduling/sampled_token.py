"""What the sampler gives for a row of logits. No OpenCL here, so that the scheduler may know it."""

from __future__ import annotations

from typing import NamedTuple


class SampledToken(NamedTuple):
    """A chosen token; `logprob` (None if not asked for) and `top`, (id, logprob) best first, are of the raw logits.

    `surprise`, in 2⁻¹⁴ bits, is that among the tokens it was drawn from; 0 where mirostat does not ask for it.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    surprise: int = 0
