"""How a row's token is chosen, and the form that the kernel takes it in: kernels/sampling_row.cl."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine_service.scheduling.adjustments import NO_ADJUSTMENTS, Adjustments
from engine_service.scheduling.sampling_params import MAX_LOGPROBS, SamplingParams, integer_weight

_WORD = 0xFFFFFFFF
_NUM_STAGES = 12


class RowParams(NamedTuple):
    """How one row's token is chosen.

    `position` is the absolute position of the token to be chosen. `banned_ids` (distinct or not) come as
    GenerationLimits.banned_ids gives them. `num_logprobs` in [0, 20], or None for no log-probability at all.
    `allowed` is a packed mask, uint32 [ceil(vocab_size / 32)]: bit i % 32 of word i // 32 allows token i, bits from
    vocab_size on are 0, and some bit is set; None allows all. Where all allowed tokens are banned or have logits of
    -infinity or NaN, the lowest allowed id is chosen. `max_surprise` is mirostat's mu in 2⁻¹⁴ bits.
    """

    sampling: SamplingParams
    position: int
    choice: int = 0
    banned_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    allowed: NDArray[np.uint32] | None = None
    adjustments: Adjustments = NO_ADJUSTMENTS
    max_surprise: int = 0

    @property
    def wants_report(self) -> bool:
        """Whether the host needs more of the row than the token's id."""
        return self.num_logprobs is not None or self.sampling.mirostat is not None


_SAMPLING = np.dtype(
    [
        ("inverse_temperature", "<f4"),
        ("top_k", "<u4"),
        ("top_p_weight", "<u4"),
        ("min_p_weight", "<u4"),
        ("typical_p_weight", "<u4"),
        ("xtc_probability_weight", "<u4"),
        ("xtc_threshold_weight", "<u4"),
        ("top_n_sigma", "<f4"),
        ("seed_low", "<u4"),
        ("seed_high", "<u4"),
        ("stages", "u1", (_NUM_STAGES,)),
    ]
)

ROW_PARAMS = np.dtype(
    [
        ("sampling", _SAMPLING),
        ("position", "<u4"),
        ("choice", "<u4"),
        ("max_surprise", "<i4"),
        ("num_logprobs", "<i4"),
        ("mask", "<i4"),
        ("first_adjustment", "<i4"),
        ("num_biases", "<i4"),
        ("num_penalties", "<i4"),
        ("num_dry", "<i4"),
    ]
)

ROW_REPORT = np.dtype(
    [
        ("weight_sum", "<u8"),
        ("largest_logit", "<f4"),
        ("chosen_logit", "<f4"),
        ("surprise", "<i4"),
        ("top_ids", "<i4", (MAX_LOGPROBS,)),
        ("top_logits", "<f4", (MAX_LOGPROBS,)),
    ],
    align=True,
)


@lru_cache(maxsize=4096)
def sampling_fields(sampling: SamplingParams) -> tuple[Any, ...]:
    """The fields of ROW_PARAMS' `sampling`: the same in every step of a request."""
    stages = sampling.stages
    return (
        sampling.inverse_temperature,
        sampling.top_k,
        sampling.top_p_weight,
        sampling.min_p_weight,
        integer_weight(sampling.typical_p),
        integer_weight(sampling.xtc.probability),
        integer_weight(sampling.xtc.threshold),
        sampling.top_n_sigma,
        sampling.seed & _WORD,
        sampling.seed >> 32,
        stages + (0,) * (_NUM_STAGES - len(stages)),
    )
