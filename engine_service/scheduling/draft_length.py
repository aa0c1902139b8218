"""How long a draft is to be, by what became of those before and by what rows cost."""

from __future__ import annotations

from functools import lru_cache

# What a step costs by its rows, a step of one row being 1: TinyLlama-1.1B in Q8_0 on two cores took 33 ms for one row,
# 37 for two to four, 40 up to eight, 54, 67 and 78 for four more each. Up to eight, reading the weights takes the time,
# then computing does; matmuls take four rows at a time.
_ROWS_AT_A_TIME = 4
_ROWS_BESIDE_READING = 8
_COST_BESIDE_READING, _COST_OF_COMPUTING = 0.025, 0.1  # of a row
_PRIOR_TRIALS, _PRIOR_ACCEPTED = 2.0, 1.4  # what a sequence is taken to have seen when it starts
_MEMORY_TRIALS = 20.0  # older trials fade
_PROBE_STEPS = 32  # without a draft; then one token is tried, which costs 0.3 % of the time
_NUM_CHANCES = 64  # by which the estimate is rounded


class DraftLength:
    """One sequence's estimate of the chance that a draft's next token is accepted, given those before it were.

    The length is the one at which most tokens are expected by the time they take (`best_length`). Where that is none,
    one token is tried now and then, which counts for more than what was seen long before.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._trials, self._accepted = _PRIOR_TRIALS, _PRIOR_ACCEPTED
        self._num_steps_without = 0  # steps in a row in which no draft was worth it

    def limit(self, num_decodes: int) -> int:
        """Tokens of a draft in a step in which `num_decodes` sequences decode, at least 1; call it once a step."""
        chance = round(_NUM_CHANCES * self._accepted / self._trials) / _NUM_CHANCES
        length = best_length(self._max_tokens, num_decodes, chance)
        if length:
            return length
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


@lru_cache(maxsize=4096)
def best_length(max_tokens: int, num_decodes: int, chance: float) -> int:
    """The length in [0, max_tokens] that brings most tokens by the time, the shortest of several.

    As if all of the step's sequences drafted so: a draft of k tokens, each accepted with `chance` after the one before,
    brings chance + … + chance^k tokens beside the one that every step brings, in a step of num_decodes × (1 + k) rows.
    """
    best, best_rate = 0, 1 / _cost(num_decodes)
    num_expected = reached = 1.0
    for length in range(1, max_tokens + 1):
        reached *= chance
        num_expected += reached
        rate = num_expected / _cost(num_decodes * (1 + length))
        if rate > best_rate:
            best, best_rate = length, rate
    return best


def _cost(num_rows: int) -> float:
    if num_rows == 1:
        return 1.0
    rows = -(-num_rows // _ROWS_AT_A_TIME) * _ROWS_AT_A_TIME
    beside = min(rows, _ROWS_BESIDE_READING)
    return 1 + beside * _COST_BESIDE_READING + (rows - beside) * _COST_OF_COMPUTING
