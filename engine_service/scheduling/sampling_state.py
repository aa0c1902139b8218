"""What choosing a sequence's next token takes beside the row of logits; the sequence's, so it outlives its blocks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine_service.scheduling.adjustments import NONE, Adjustments, ban, subtract
from engine_service.scheduling.penalty_window import PenaltyWindow
from engine_service.scheduling.repetitions import Repetitions
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import SamplingParams

SURPRISE_UNIT = 2.0**-14  # bits
_LARGEST_SURPRISE = (1 << 31) - 1


class SamplingState:
    """Penalties, DRY, bad sequences and mirostat's mu of one sequence, kept up with each accepted token."""

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._token_ids = array("i", prompt_ids)
        self._penalties = PenaltyWindow(sampling, self._token_ids) if sampling.has_penalties else None
        self._dry = Repetitions(sampling.dry, self._token_ids) if sampling.dry.multiplier > 0 else None
        ids, biases = zip(*sampling.logit_bias, strict=True) if sampling.logit_bias else ((), ())
        self._biases = subtract(ids, -np.array(biases, np.float32)) if ids else NONE
        self._bad = _BadSequences(sampling.bad_token_sequences)
        self._mu = 2.0 * sampling.mirostat.target if sampling.mirostat else 0.0

    @classmethod
    def of(cls, sampling: SamplingParams, prompt_ids: Sequence[int]) -> SamplingState | None:
        """The state before the first token; None where there is nothing to keep."""
        return cls(sampling, prompt_ids) if sampling.depends_on_history else None

    def adjustments(self, tail: tuple[int, ...] = ()) -> Adjustments:
        """Of the row after the known tokens and `tail`, as if that had been accepted; changes nothing."""
        for token_id in tail:
            self._push(token_id)
        biases = np.concatenate((self._biases, ban(self._bad.last_ids(self._token_ids))))
        result = Adjustments(
            biases=biases,
            penalties=self._penalties.adjustments() if self._penalties else NONE,
            dry=self._dry.adjustments() if self._dry else NONE,
        )
        for _ in tail:
            self._pop()
        return result

    @property
    def max_surprise(self) -> int:
        """mirostat's mu, in units of 2⁻¹⁴ bits, rounded down; 0 without mirostat."""
        return int(max(-1.0, min(self._mu / SURPRISE_UNIT, _LARGEST_SURPRISE)))

    def accept(self, token: SampledToken) -> None:
        """Takes in the next known token."""
        self._push(token.token_id)
        if self._dry:
            self._dry.forget()
        if self._sampling.mirostat:
            error = token.surprise * SURPRISE_UNIT - self._sampling.mirostat.target
            self._mu -= self._sampling.mirostat.learning_rate * error

    def _push(self, token_id: int) -> None:
        self._token_ids.append(token_id)
        if self._penalties:
            self._penalties.push()
        if self._dry:
            self._dry.push()

    def _pop(self) -> None:
        if self._penalties:
            self._penalties.pop()
        if self._dry:
            self._dry.pop()
        self._token_ids.pop()


class _BadSequence(NamedTuple):
    prefix: array[int]
    last_id: int


class _BadSequences:
    """Sequences that must not be completed, by the token before their last."""

    def __init__(self, sequences: tuple[tuple[int, ...], ...]) -> None:
        self._always = [ids[0] for ids in sequences if len(ids) == 1]
        self._by_token: dict[int, list[_BadSequence]] = {}
        for ids in sequences:
            if len(ids) > 1:
                self._by_token.setdefault(ids[-2], []).append(_BadSequence(array("i", ids[:-1]), ids[-1]))

    def last_ids(self, token_ids: array[int]) -> list[int]:
        """The ids that would complete one after `token_ids`."""
        candidates = self._by_token.get(token_ids[-1], ())
        return self._always + [bad.last_id for bad in candidates if token_ids[-len(bad.prefix) :] == bad.prefix]
