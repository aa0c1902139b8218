"""How many prefill tokens a step may hold beside its decode tokens: a long prompt must not stall others' tokens.

A feedback controller: it is told how long steps took, and keeps a step with prefill within a given multiple of what its
decode tokens alone would take. It has no clock of its own. Results never depend on it (docs/numerics.md).
"""

from __future__ import annotations

from math import isinf

_UNLIMITED = 1 << 62
_DECAY = 0.9  # weight of what was known of prefill before a measurement
_MAX_RISE = 1.25  # a step without prefill counts as at most so many times what was expected: one hiccup costs little
_MAX_MIXED_STEPS = 32  # in a row; then one without prefill shows anew what decode tokens alone take


class PrefillBudget:
    """Learns two figures: what a step without prefill takes, and what each prefill token adds."""

    def __init__(self, max_stretch: float, min_tokens: int) -> None:
        """`max_stretch` > 1 is the multiple, infinity for no limit; `min_tokens` are granted whatever they take."""
        self._max_stretch = max_stretch
        self._min_tokens = min_tokens
        self._num_mixed_steps = _MAX_MIXED_STEPS  # since a step of decode tokens alone: so the first one is measured
        self._decode_seconds = 0.0  # of a step with `_num_decodes` tokens and no prefill
        self._num_decodes = 0
        self._prefill_seconds = 0.0  # what `_prefill_tokens` have added to their steps; recent ones weigh more
        self._prefill_tokens = 0.0

    def limit(self, num_decodes: int) -> int:
        """Prefill tokens for a step with `num_decodes` decode tokens; 0 where the step is to be measured without."""
        if num_decodes == 0 or isinf(self._max_stretch):
            return _UNLIMITED
        if self._num_mixed_steps >= _MAX_MIXED_STEPS:
            return 0
        spare_seconds = (self._max_stretch - 1) * self._seconds_without_prefill(num_decodes)
        if spare_seconds * self._prefill_tokens >= _UNLIMITED * self._prefill_seconds:
            return _UNLIMITED
        return max(self._min_tokens, int(spare_seconds * self._prefill_tokens / self._prefill_seconds))

    def observe(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step of so many tokens took `seconds`."""
        expected_seconds = self._seconds_without_prefill(num_decodes)
        if num_prefill_tokens == 0:
            self._num_mixed_steps = 0
            if expected_seconds:
                seconds = (expected_seconds + min(seconds, _MAX_RISE * expected_seconds)) / 2
            self._decode_seconds, self._num_decodes = seconds, num_decodes
            return
        self._num_mixed_steps += num_decodes > 0
        added_seconds = max(0.0, seconds - expected_seconds)
        self._prefill_seconds = _DECAY * self._prefill_seconds + added_seconds
        self._prefill_tokens = _DECAY * self._prefill_tokens + num_prefill_tokens

    def _seconds_without_prefill(self, num_decodes: int) -> float:
        """Taken from the last measurements; a decode token more or less counts as much as one of prefill."""
        if not self._num_decodes or not num_decodes:
            return 0.0
        at_least = self._decode_seconds * min(1.0, num_decodes / self._num_decodes)
        token_seconds = self._prefill_seconds / self._prefill_tokens if self._prefill_tokens else 0.0
        return max(at_least, self._decode_seconds + token_seconds * (num_decodes - self._num_decodes))
