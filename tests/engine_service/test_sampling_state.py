"""What a sequence's history does to its next row, against a recount of all of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_methods import Dry, Mirostat
from engine_service.scheduling.sampling_params import SamplingParams
from engine_service.scheduling.sampling_state import SamplingState


def as_dict(adjustments: Any) -> dict[int, tuple[float, float]]:
    """Divisor and subtrahend by id."""
    return {token_id: (divisor, subtrahend) for token_id, divisor, subtrahend in adjustments.tolist()}


def recounted_penalties(s: SamplingParams, known: list[int], num_prompt: int) -> dict[int, tuple[float, float]]:
    """Each token of the window, counted anew."""
    start = max(0, len(known) - s.penalty_window) if s.penalty_window else 0
    result = {}
    for token_id in set(known[start:]):
        times = known[max(start, num_prompt) :].count(token_id)
        subtrahend = times * s.frequency_penalty + (s.presence_penalty if times else 0)
        if s.repetition_penalty != 1 or subtrahend:
            result[token_id] = (s.repetition_penalty, subtrahend)
    return result


def recounted_dry(dry: Dry, known: list[int]) -> dict[int, tuple[float, float]]:
    """Every earlier place compared token by token."""
    known = known[-dry.window :]
    longest: dict[int, int] = {}
    for place in range(len(known) - 1):
        length = 0
        while length <= place and known[place - length] == known[-1 - length] not in dry.breaker_ids:
            length += 1
        if length >= dry.allowed_length:
            longest[known[place + 1]] = max(length, longest.get(known[place + 1], 0))
    return {
        token_id: (1.0, float(np.float32(dry.multiplier * dry.base ** (length - dry.allowed_length))))
        for token_id, length in longest.items()
    }


@pytest.mark.parametrize("window", [0, 1, 5, 40])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5])
@pytest.mark.parametrize("prompt_len", [1, 30])
def test_penalties_and_dry_are_those_of_a_recount(window: int, repetition_penalty: float, prompt_len: int) -> None:
    """After each of 60 tokens of a small vocabulary, and for tails of drafts, which change nothing."""
    rng = np.random.default_rng(window)
    sampling = SamplingParams(
        seed=0,
        repetition_penalty=repetition_penalty,
        frequency_penalty=0.25,
        presence_penalty=0.5,
        penalty_window=window,
        dry=Dry(multiplier=0.5, base=1.5, allowed_length=2, window=window, breaker_ids=frozenset({3})),
    )
    known = rng.integers(5, size=prompt_len).tolist()
    state = SamplingState(sampling, known)
    for _ in range(60):
        tail: list[int] = rng.integers(5, size=rng.integers(4)).tolist()
        for added in (tail, list[int]()):
            found = state.adjustments(tuple(added))
            assert as_dict(found.penalties) == recounted_penalties(sampling, known + added, prompt_len)
            assert as_dict(found.dry) == recounted_dry(sampling.dry, known + added)
        known.append(int(rng.integers(5)))
        state.accept(SampledToken(known[-1], None, ()))


def test_penalty_of_a_long_repetition_stays_finite() -> None:
    """Thousands of equal tokens; also fast, in the prompt and after."""
    state = SamplingState(SamplingParams(seed=0, dry=Dry(multiplier=1, base=16)), [7] * 20_000)
    state.accept(SampledToken(7, None, ()))
    assert as_dict(state.adjustments().dry) == {7: (1.0, float(np.float32(1e30)))}


def test_bad_sequences_are_not_completed() -> None:
    """A single id never is chosen; others where what comes before them is there, in the prompt or a tail too."""
    state = SamplingState(SamplingParams(seed=0, bad_token_sequences=((9,), (1, 2, 3), (2, 4), (5, 6))), [1])
    assert set(as_dict(state.adjustments().biases)) == {9}
    assert set(as_dict(state.adjustments((2,)).biases)) == {9, 3, 4}
    state.accept(SampledToken(5, None, ()))
    assert as_dict(state.adjustments().biases) == {9: (1.0, np.inf), 6: (1.0, np.inf)}


def test_biases_are_added_whatever_came_before() -> None:
    """A bias is a negative subtrahend."""
    state = SamplingState(SamplingParams(seed=0, logit_bias=((3, 1.5), (4, -2.0))), [1])
    assert as_dict(state.adjustments().biases) == {3: (1.0, -1.5), 4: (1.0, 2.0)}


def test_mu_follows_the_target() -> None:
    """It begins at twice the target and moves by the learning rate times the error."""
    state = SamplingState(SamplingParams(seed=0, mirostat=Mirostat(target=3.0, learning_rate=0.5)), [1])
    assert state.max_surprise == 6 << 14
    state.accept(SampledToken(1, None, (), surprise=5 << 14))
    assert state.max_surprise == 5 << 14
    state.accept(SampledToken(1, None, (), surprise=100 << 14))
    assert state.max_surprise == -1


def test_plain_requests_keep_no_state() -> None:
    """None of what they set depends on what came before."""
    assert SamplingState.of(SamplingParams(seed=0, temperature=0.5, top_k=3, top_p=0.5), [1]) is None
