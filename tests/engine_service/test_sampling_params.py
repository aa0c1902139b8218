"""Ranges and defaults of the sampling parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from engine_service.scheduling.sampling_params import (
    GenerationLimits,
    SamplingParams,
    checked_logprobs,
    checked_max_tokens,
    checked_min_p,
    checked_min_tokens,
    checked_seed,
    checked_stop_token_ids,
    checked_temperature,
    checked_top_k,
    checked_top_p,
)
from service_common.errors import Code, InvalidArgumentError

NAN, INF = math.nan, math.inf


def test_parameters_that_are_not_set_take_the_defaults_of_the_wire() -> None:
    """Temperature 1 and no filter; the context's rest and nothing that stops."""
    assert SamplingParams.create(seed=7) == SamplingParams(seed=7, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    assert GenerationLimits.create(context_left=50, vocab_size=10) == GenerationLimits(
        max_tokens=50, min_tokens=0, stop_token_ids=(), ignore_eos=False
    )
    assert checked_logprobs(None) is None


def test_zero_is_a_value_and_not_a_default() -> None:
    """A set zero is kept: greedy, no top tokens beside the chosen one."""
    assert SamplingParams.create(seed=0, temperature=0.0).is_greedy
    assert checked_logprobs(0) == 0


@pytest.mark.parametrize(
    ("check", "bad", "field"),
    [
        (checked_seed, (-1, 1 << 64), "params.sampling.seed"),
        (checked_temperature, (-0.1, 100.5, NAN, INF, -INF), "params.sampling.temperature"),
        (checked_top_k, (-1, 1 << 31), "params.sampling.top_k"),
        (checked_top_p, (0.0, -0.5, 1.01, 1e-60, NAN, INF, -INF), "params.sampling.top_p"),
        (checked_min_p, (-0.01, 1.01, NAN, INF, -INF), "params.sampling.min_p"),
        (lambda value: checked_max_tokens(value, 5), (0, -1, 1 << 31), "params.stopping.max_tokens"),
        (lambda value: checked_min_tokens(value, 5), (-1, 6), "params.stopping.min_tokens"),
        (checked_logprobs, (-1, 21), "params.logprobs"),
    ],
)
def test_value_out_of_range_is_refused_by_name(
    check: Callable[[float], object], bad: tuple[float, ...], field: str
) -> None:
    """The error is INVALID_ARGUMENT and tells field and value (MODEL-13)."""
    for value in bad:
        with pytest.raises(InvalidArgumentError, match="must be") as caught:
            check(value)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.field == field
        assert f"{field} is {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (checked_seed, (0, (1 << 64) - 1)),
        (checked_temperature, (0.0, 1e-30, 100.0)),
        (checked_top_k, (0, (1 << 31) - 1)),
        (checked_top_p, (1e-40, 0.5, 1.0)),
        (checked_min_p, (0.0, 1.0)),
        (lambda value: checked_max_tokens(value, 5), (1, (1 << 31) - 1)),
        (lambda value: checked_min_tokens(value, 5), (0, 5)),
        (checked_logprobs, (0, 20)),
    ],
)
def test_both_ends_of_a_range_are_accepted_unchanged(check: Callable[[float], object], good: tuple[float, ...]) -> None:
    """Limits belong to the range."""
    assert [check(value) for value in good] == list(good)


def test_stop_token_ids_are_limited_in_number_and_to_the_vocabulary() -> None:
    """The error names the list's length, or the first bad id and its index."""
    assert checked_stop_token_ids([0, 9], 10) == (0, 9)
    assert checked_stop_token_ids(range(16), 16) == tuple(range(16))
    with pytest.raises(InvalidArgumentError, match="a list of 17 ids; must hold at most 16"):
        checked_stop_token_ids(range(17), 100)
    for bad in (10, -1):
        with pytest.raises(InvalidArgumentError, match=r"stop_token_ids\[1\] is .*10 tokens"):
            checked_stop_token_ids([3, bad], 10)


def test_token_counts_are_clamped_to_the_context_after_the_check() -> None:
    """Asking for more than fits is valid; min_tokens above max_tokens is not."""
    limits = GenerationLimits.create(context_left=10, vocab_size=5, max_tokens=1000, min_tokens=500)
    assert (limits.max_tokens, limits.min_tokens) == (10, 10)
    with pytest.raises(InvalidArgumentError, match="min_tokens is 4; must be between 0 and max_tokens, which is 3"):
        GenerationLimits.create(context_left=10, vocab_size=5, max_tokens=3, min_tokens=4)


def test_every_ending_token_is_banned_below_min_tokens() -> None:
    """End-of-generation and stop ids, until min_tokens have been generated; ignore_eos changes nothing there."""
    limits = GenerationLimits(max_tokens=9, min_tokens=2, stop_token_ids=(5, 6), ignore_eos=True)
    assert [limits.banned_ids((1,), generated) for generated in (0, 1, 2, 3)] == [(1, 5, 6), (1, 5, 6), (), ()]
    assert GenerationLimits(max_tokens=9, stop_token_ids=(5,)).banned_ids((1,), 0) == ()


@pytest.mark.parametrize(
    ("params", "greedy"),
    [
        (SamplingParams(seed=0, temperature=0.0), True),
        (SamplingParams(seed=0, temperature=1e-39), True),
        (SamplingParams(seed=0, temperature=5.0, top_k=1), True),
        (SamplingParams(seed=0, temperature=2.0**-126), False),
        (SamplingParams(seed=0, top_p=1e-9, min_p=1.0), False),
    ],
)
def test_temperature_0_subnormal_or_top_k_1_is_greedy(params: SamplingParams, greedy: bool) -> None:
    """Everything else is drawn, and has a finite positive 1 / temperature."""
    assert params.is_greedy is greedy
    assert greedy or 0 < params.inverse_temperature < INF


def test_derived_values_are_those_of_the_f32_on_the_wire() -> None:
    """0.1 and the f32 next to it give the same bits; probabilities become integer weights, rounded up."""
    params, wire = (SamplingParams(seed=0, temperature=t, top_p=t, min_p=t) for t in (0.1, float(np.float32(0.1))))
    assert params.inverse_temperature == np.float32(1) / np.float32(0.1)
    assert params.inverse_temperature.dtype == np.float32
    assert (
        (params.top_p_weight, params.min_p_weight) == (wire.top_p_weight, wire.min_p_weight) == (214748368, 214748368)
    )
    ends = SamplingParams(seed=0, top_p=1e-40, min_p=0.0)
    assert (ends.top_p_weight, ends.min_p_weight, SamplingParams(seed=0).top_p_weight) == (1, 0, 1 << 31)
