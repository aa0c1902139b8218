"""How long a draft may be: as long as each of its tokens is likely enough to be accepted to be worth its row."""

from __future__ import annotations

from math import log

_ROW_COST = 0.15  # of a step with one row: what each further row adds, for models of about 1B parameters on two cores
_PRIOR_TRIALS, _PRIOR_ACCEPTED = 2.0, 1.4  # what a sequence is taken to have seen when it starts
_MEMORY_TRIALS = 20.0  # older trials fade
_CERTAIN = 0.999  # the highest chance that is believed in
_PROBE_STEPS = 32  # without a draft; then one token is tried, at the cost of one row in so many steps


class DraftLength:
    """One sequence's estimate of the chance that a draft's next token is accepted, given those before it were.

    With that chance a, a draft's i-th token brings a^i tokens. It is worth its row while a^i exceeds the row's share of
    what a token costs without it: with n sequences in the step, r × n ÷ (1 + r × (n − 1)), r being `_ROW_COST`. Where
    not even the first is, one is tried now and then, which counts for more than what was seen long before.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._trials, self._accepted = _PRIOR_TRIALS, _PRIOR_ACCEPTED
        self._num_steps_without = 0  # steps in a row in which no draft was worth it

    def limit(self, num_decodes: int) -> int:
        """Tokens of a draft in a step in which `num_decodes` sequences decode, at least 1; call it once a step."""
        price = _ROW_COST * num_decodes / (1 + _ROW_COST * (num_decodes - 1))
        chance = min(self._accepted / self._trials, _CERTAIN)
        if chance > price:
            return min(self._max_tokens, int(log(price) / log(chance)))
        self._num_steps_without += 1
        return min(self._max_tokens, int(self._num_steps_without >= _PROBE_STEPS))

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Of a draft of `num_drafted` tokens, at least 1, the first `num_accepted` were accepted."""
        if self._num_steps_without >= _PROBE_STEPS:
            self._fade(_PRIOR_TRIALS)
        self._num_steps_without = 0
        self._accepted += num_accepted
        self._trials += num_accepted + (num_accepted < num_drafted)
        self._fade(_MEMORY_TRIALS)

    def _fade(self, max_trials: float) -> None:
        if self._trials > max_trials:
            self._accepted *= max_trials / self._trials
            self._trials = max_trials
