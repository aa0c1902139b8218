"""How a request's tokens are chosen and when a choice ends: ranges and defaults of protos/clforge/v1/generation.proto.

Values arrive with None for "not set"; `create` fills in the default and checks the range, so that the code behind it
can trust them. A value out of range is an InvalidArgumentError with the field's path on the wire.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_service.scheduling.ranges import (
    integer_in_range,
    limited_list,
    number_in_range,
    positive_number,
    token_ids_in_vocabulary,
)
from engine_service.scheduling.sampling_methods import NO_DRY, NO_XTC, Dry, Mirostat, Xtc
from engine_service.scheduling.sampling_stages import DEFAULT_ORDER, Stage, check_mirostat_is_alone, checked_order
from service_common.errors import InvalidArgumentError

MAX_TEMPERATURE = 100.0
MAX_STOP_TOKEN_IDS = 16
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_ALLOWED_IDS = 65536
MAX_BAD_SEQUENCES = 256
MAX_BAD_SEQUENCE_LEN = 64
_ONE = 1 << 31  # the weight of the best token, and of probability 1: docs/numerics.md section 10
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_KEEP_THE_BEST = (Stage.TOP_N_SIGMA, Stage.TEMPERATURE, Stage.TOP_K, Stage.TOP_P, Stage.MIN_P)


class AllowedTokens:
    """The only tokens that may be chosen.

    `mask`: uint32 [ceil(vocab_size / 32)], bit i % 32 of word i // 32 for id i.
    """

    def __init__(self, token_ids: Sequence[int], vocab_size: int) -> None:
        bits = np.zeros((vocab_size + 31) // 32 * 32, np.uint8)
        bits[list(token_ids)] = 1
        self.mask: NDArray[np.uint32] = np.packbits(bits, bitorder="little").view("<u4")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen: docs/sampling.md. Stages apply in the order of `order`.

    `create` checks the values; the constructor trusts them. The properties are what docs/numerics.md section 10
    computes with; each first rounds its value to f32, the type on the wire.
    """

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 0
    dry: Dry = NO_DRY
    xtc: Xtc = NO_XTC
    mirostat: Mirostat | None = None
    order: tuple[Stage, ...] = DEFAULT_ORDER
    # Left out of the hash, which is taken every step. The lists are short or rare.
    logit_bias: tuple[tuple[int, float], ...] = field(default=(), hash=False)
    allowed: AllowedTokens | None = None
    bad_token_sequences: tuple[tuple[int, ...], ...] = field(default=(), hash=False)

    @classmethod
    def create(
        cls,
        *,
        seed: int,
        vocab_size: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        order: Sequence[Stage] = (),
        logit_bias: Mapping[int, float] = MappingProxyType({}),
        allowed_token_ids: Sequence[int] = (),
        bad_token_sequences: Sequence[Sequence[int]] = (),
        **others: Any,
    ) -> SamplingParams:
        """Checked parameters; None takes the default. The caller draws a seed (64 bits) where the client gave none.

        `others` are the fields from typical_p to mirostat, or None; dry, xtc and mirostat are checked already.
        `vocab_size` limits the ids of the last three.
        """
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, **others}
        names = [name for name, value in given.items() if value is not None]
        others = {name: value for name, value in others.items() if value is not None}
        if "mirostat" in others:
            check_mirostat_is_alone(names)
        for name, check in _CHECKS.items():
            if name in others:
                check(f"params.sampling.{name}", others[name])
        allowed_ids = checked_allowed_token_ids(allowed_token_ids, vocab_size)
        return cls(
            seed=checked_seed(seed),
            temperature=checked_temperature(temperature),
            top_k=checked_top_k(top_k),
            top_p=checked_top_p(top_p),
            min_p=checked_min_p(min_p),
            order=checked_order(order, names),
            logit_bias=checked_logit_bias(logit_bias, vocab_size),
            bad_token_sequences=checked_bad_token_sequences(bad_token_sequences, vocab_size, allowed_ids),
            allowed=AllowedTokens(allowed_ids, vocab_size) if allowed_ids else None,
            **others,
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that do something, in order; what comes after the largest logit is taken does nothing."""
        stages: list[Stage] = []
        for stage in self.order:
            if (stage is Stage.TEMPERATURE and self._is_cold) or (stage is Stage.TOP_K and self.top_k == 1):
                while stages and stages[-1] in _KEEP_THE_BEST:
                    stages.pop()
                return (*stages, Stage.GREEDY)
            if self._has(stage):
                stages.append(stage)
        return tuple(stages) if self.mirostat is None else (*stages, Stage.MIROSTAT)

    def _has(self, stage: Stage) -> bool:
        match stage:
            case Stage.PENALTIES:
                return self.has_penalties
            case Stage.DRY:
                return self.dry.multiplier > 0
            case Stage.TOP_N_SIGMA:
                return self.top_n_sigma > 0
            case Stage.TEMPERATURE:
                return bool(self.inverse_temperature != 1)
            case Stage.TOP_K:
                return self.top_k > 0
            case Stage.TYPICAL_P:
                return self.typical_p < 1
            case Stage.TOP_P:
                return self.top_p < 1
            case Stage.MIN_P:
                return self.min_p > 0
            case _:
                return self.xtc.probability > 0

    @property
    def has_penalties(self) -> bool:
        """Whether any of the three penalties is on."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)

    @property
    def depends_on_history(self) -> bool:
        """Whether choosing a token takes more than this row of logits: a SamplingState keeps it."""
        return bool(
            self.has_penalties
            or self.dry.multiplier > 0
            or self.mirostat is not None
            or self.logit_bias
            or self.bad_token_sequences
        )

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is taken. A subnormal temperature counts as 0, as devices that flush it see it."""
        return Stage.GREEDY in self.stages

    @property
    def _is_cold(self) -> bool:
        return float(np.float32(self.temperature)) < _SMALLEST_NORMAL

    @property
    def inverse_temperature(self) -> np.float32:
        """1 ÷ temperature, rounded once; 0 at temperature 0, where nothing reads it."""
        return np.float32(0) if self._is_cold else np.float32(1) / np.float32(self.temperature)

    @property
    def top_p_weight(self) -> int:
        """ceil(top_p × 2³¹), in [1, 2³¹]."""
        return integer_weight(self.top_p)

    @property
    def min_p_weight(self) -> int:
        """ceil(min_p × 2³¹), in [0, 2³¹]."""
        return integer_weight(self.min_p)


def integer_weight(probability: float) -> int:
    """ceil(probability × 2³¹), of its f32."""
    return math.ceil(float(np.float32(probability)) * _ONE)


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
    return integer_in_range("params.sampling.seed", value, 0, (1 << 64) - 1)


def checked_temperature(value: float | None) -> float:
    """`value` in [0, 100]; default 1. 0 means greedy."""
    return 1.0 if value is None else number_in_range("params.sampling.temperature", value, 0.0, MAX_TEMPERATURE)


def checked_top_k(value: int | None) -> int:
    """`value` in [0, 2³¹); default 0, which keeps all tokens."""
    return 0 if value is None else integer_in_range("params.sampling.top_k", value, 0, _ONE - 1)


def checked_top_p(value: float | None) -> float:
    """`value` in (0, 1] as f32; default 1, which keeps all tokens."""
    if value is None:
        return 1.0
    if not 0.0 < value <= 1.0 or np.float32(value) == 0:
        raise InvalidArgumentError("params.sampling.top_p", value, "must be above 0 and at most 1; 1 keeps all tokens")
    return value


def checked_min_p(value: float | None) -> float:
    """`value` in [0, 1]; default 0, which keeps all tokens."""
    return 0.0 if value is None else number_in_range("params.sampling.min_p", value, 0.0, 1.0)


def checked_max_tokens(value: int | None, context_left: int) -> int:
    """`value` in [1, 2³¹); default `context_left`."""
    return context_left if value is None else integer_in_range("params.stopping.max_tokens", value, 1, _ONE - 1)


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
    return None if value is None else integer_in_range(field, value, 0, MAX_LOGPROBS)


def checked_logit_bias(value: Mapping[int, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """`value` as pairs by ascending id: at most 1024, ids in [0, vocab_size), biases in [-100, 100]."""
    name = "params.sampling.logit_bias"
    if len(value) > MAX_BIASES:
        raise InvalidArgumentError(name, f"a map of {len(value)} ids", f"must hold at most {MAX_BIASES}")
    for token_id, bias in value.items():
        if not 0 <= token_id < vocab_size:
            raise InvalidArgumentError(name, token_id, f"must be below the vocabulary's {vocab_size} tokens")
        number_in_range(f"{name}[{token_id}]", bias, -100.0, 100.0)
    return tuple(sorted(value.items()))


def checked_allowed_token_ids(value: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """`value` as a tuple: at most 65536 ids, each in [0, vocab_size)."""
    limited_list("params.sampling.allowed_token_ids", value, MAX_ALLOWED_IDS, "ids")
    return token_ids_in_vocabulary("params.sampling.allowed_token_ids", value, vocab_size)


def checked_bad_token_sequences(
    value: Sequence[Sequence[int]], vocab_size: int, allowed_token_ids: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """`value` as tuples: at most 256 of 1 to 64 ids, each in [0, vocab_size); they leave an allowed token."""
    name = "params.sampling.bad_token_sequences"
    limited_list(name, value, MAX_BAD_SEQUENCES, "sequences")
    sequences = []
    for index, ids in enumerate(value):
        limited_list(f"{name}[{index}].ids", ids, MAX_BAD_SEQUENCE_LEN, "ids", least=1)
        sequences.append(token_ids_in_vocabulary(f"{name}[{index}].ids", ids, vocab_size))
    never = {ids[0] for ids in sequences if len(ids) == 1}
    if len(never) >= (vocab_size or 1) or (allowed_token_ids and never.issuperset(allowed_token_ids)):
        raise InvalidArgumentError(name, f"a list of {len(value)} sequences", "must leave an allowed token")
    return tuple(sequences)


_CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "typical_p": lambda name, value: positive_number(name, value, 1.0),
    "top_n_sigma": lambda name, value: number_in_range(name, value, 0.0, 100.0),
    "repetition_penalty": lambda name, value: positive_number(name, value, 10.0),
    "frequency_penalty": lambda name, value: number_in_range(name, value, -10.0, 10.0),
    "presence_penalty": lambda name, value: number_in_range(name, value, -10.0, 10.0),
    "penalty_window": lambda name, value: integer_in_range(name, value, 0, _ONE - 1),
}
