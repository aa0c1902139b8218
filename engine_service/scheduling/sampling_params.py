"""How a request's tokens are chosen and when a choice ends: ranges and defaults of protos/clforge/v1/generation.proto.

Values arrive with None for "not set"; `create` fills in the default and checks the range, so that the code behind it
can trust them. A value out of range is an InvalidArgumentError with the field's path on the wire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service_common.errors import InvalidArgumentError

MAX_TEMPERATURE = 100.0
MAX_STOP_TOKEN_IDS = 16
MAX_LOGPROBS = 20
_ONE = 1 << 31  # the weight of the best token, and of probability 1: docs/numerics.md section 10
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Filters apply in the order temperature, top_k, top_p, min_p.

    `create` checks the values; the constructor trusts them. The properties are what docs/numerics.md section 10
    computes with; each first rounds its value to f32, the type on the wire.
    """

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @classmethod
    def create(
        cls,
        *,
        seed: int,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
    ) -> SamplingParams:
        """Checked parameters; None takes the default. The caller draws a seed (64 bits) where the client gave none."""
        return cls(
            seed=checked_seed(seed),
            temperature=checked_temperature(temperature),
            top_k=checked_top_k(top_k),
            top_p=checked_top_p(top_p),
            min_p=checked_min_p(min_p),
        )

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is taken. A subnormal temperature counts as 0, as devices that flush it see it."""
        return self.top_k == 1 or float(np.float32(self.temperature)) < _SMALLEST_NORMAL

    @property
    def inverse_temperature(self) -> np.float32:
        """1 ÷ temperature, rounded once; 0 when greedy, where nothing reads it."""
        return np.float32(0) if self.is_greedy else np.float32(1) / np.float32(self.temperature)

    @property
    def top_p_weight(self) -> int:
        """ceil(top_p × 2³¹), in [1, 2³¹]."""
        return math.ceil(float(np.float32(self.top_p)) * _ONE)

    @property
    def min_p_weight(self) -> int:
        """ceil(min_p × 2³¹), in [0, 2³¹]."""
        return math.ceil(float(np.float32(self.min_p)) * _ONE)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationLimits:
    """When a choice ends, as far as the engine decides it. `create` checks the values; the constructor trusts them."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @classmethod
    def create(
        cls,
        *,
        context_left: int,
        vocab_size: int,
        max_tokens: int | None = None,
        min_tokens: int | None = None,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool | None = None,
    ) -> GenerationLimits:
        """Checked limits; None takes the default.

        `context_left` (at least 1) is what the served context has left after the prompt, in tokens: the default of
        max_tokens, to which both counts are clamped after the check.
        """
        max_tokens = checked_max_tokens(max_tokens, context_left)
        min_tokens = checked_min_tokens(min_tokens, max_tokens)
        return cls(
            max_tokens=min(max_tokens, context_left),
            min_tokens=min(min_tokens, context_left),
            stop_token_ids=checked_stop_token_ids(stop_token_ids, vocab_size),
            ignore_eos=bool(ignore_eos),
        )

    def banned_ids(self, eog_ids: tuple[int, ...], num_generated: int) -> tuple[int, ...]:
        """Ids that must not be sampled after `num_generated` tokens: all that could end a choice below min_tokens."""
        return () if num_generated >= self.min_tokens else eog_ids + self.stop_token_ids


def checked_seed(value: int) -> int:
    """`value`, if it fits 64 bits unsigned."""
    return _integer_in_range("params.sampling.seed", value, 0, (1 << 64) - 1)


def checked_temperature(value: float | None) -> float:
    """`value` in [0, 100]; default 1. 0 means greedy."""
    return 1.0 if value is None else _number_in_range("params.sampling.temperature", value, 0.0, MAX_TEMPERATURE)


def checked_top_k(value: int | None) -> int:
    """`value` in [0, 2³¹); default 0, which keeps all tokens."""
    return 0 if value is None else _integer_in_range("params.sampling.top_k", value, 0, _ONE - 1)


def checked_top_p(value: float | None) -> float:
    """`value` in (0, 1] as f32; default 1, which keeps all tokens."""
    if value is None:
        return 1.0
    if not 0.0 < value <= 1.0 or np.float32(value) == 0:
        raise InvalidArgumentError("params.sampling.top_p", value, "must be above 0 and at most 1; 1 keeps all tokens")
    return value


def checked_min_p(value: float | None) -> float:
    """`value` in [0, 1]; default 0, which keeps all tokens."""
    return 0.0 if value is None else _number_in_range("params.sampling.min_p", value, 0.0, 1.0)


def checked_max_tokens(value: int | None, context_left: int) -> int:
    """`value` in [1, 2³¹); default `context_left`."""
    return context_left if value is None else _integer_in_range("params.stopping.max_tokens", value, 1, _ONE - 1)


def checked_min_tokens(value: int | None, max_tokens: int) -> int:
    """`value` in [0, max_tokens]; default 0."""
    if value is None:
        return 0
    if not 0 <= value <= max_tokens:
        limit = f"must be between 0 and max_tokens, which is {max_tokens}"
        raise InvalidArgumentError("params.stopping.min_tokens", value, limit)
    return value


def checked_stop_token_ids(value: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """`value` as a tuple: at most 16 ids, each in [0, vocab_size)."""
    field = "params.stopping.stop_token_ids"
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise InvalidArgumentError(field, f"a list of {len(value)} ids", f"must hold at most {MAX_STOP_TOKEN_IDS}")
    for index, token_id in enumerate(value):
        if not 0 <= token_id < vocab_size:
            raise InvalidArgumentError(
                f"{field}[{index}]", token_id, f"must be below the vocabulary's {vocab_size} tokens"
            )
    return tuple(value)


def checked_logprobs(value: int | None, field: str = "params.logprobs") -> int | None:
    """`value` in [0, 20], the number of most likely tokens reported beside the chosen one; None reports nothing."""
    return None if value is None else _integer_in_range(field, value, 0, MAX_LOGPROBS)


def _number_in_range(field: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:  # false for NaN too
        raise InvalidArgumentError(field, value, f"must be between {low:g} and {high:g}")
    return value


def _integer_in_range(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidArgumentError(field, value, f"must be between {low} and {high}")
    return value
