"""A compiled grammar, and one choice's way through it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from service_common.errors import InvalidArgumentError, RequestError


class CompiledGrammar:
    """A `Grammar`: what every choice that it constrains begins with."""

    def __init__(self, matcher: LLMatcher, field: str, vocab_size: int) -> None:
        """`matcher` at its beginning, without an error; `field` is what errors name."""
        self._matcher, self._field = matcher, field
        self._all = _all_tokens(vocab_size)

    def start(self) -> GrammarMatcher:
        """As Grammar. Takes some ten microseconds."""
        return GrammarMatcher(self._matcher.deep_copy(), self._field, self._all)


class GrammarMatcher:
    """A `Constraint`: the library's matcher, whose mistakes become errors of the request."""

    def __init__(self, matcher: LLMatcher, field: str, all_tokens: NDArray[np.uint32]) -> None:
        self._matcher, self._field, self._all = matcher, field, all_tokens
        self._num_accepted = 0
        self.error: RequestError | None = None

    def masks(self, tail: Sequence[int]) -> NDArray[np.uint32]:
        """As Constraint."""
        masks = np.tile(self._all, (len(tail) + 1, 1))
        if self.error is not None or not self._fill(self._matcher, masks[0]):
            return masks
        ahead = self._matcher.deep_copy() if tail else self._matcher  # a matcher never leaves an error again
        for token_id, mask in zip(tail, masks[1:], strict=True):
            if not ahead.try_consume_tokens([token_id]) or not self._fill(ahead, mask):
                break
        return masks

    def accept(self, token_id: int) -> bool:
        """As Constraint."""
        self._num_accepted += 1
        if not self._matcher.consume_token(token_id):
            self._fail()
        return self.error is None and not self._matcher.is_stopped()

    def _fill(self, matcher: LLMatcher, mask: NDArray[np.uint32]) -> bool:
        """Writes the mask of `matcher`; False, and everything is allowed, where there is none."""
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if not matcher.is_error() and mask.any():
            return True
        mask[:] = self._all
        if matcher is self._matcher:
            self._fail()
        return False

    def _fail(self) -> None:
        limit = f"no token may follow after {self._num_accepted} tokens of output: {self._matcher.get_error()}"
        self.error = InvalidArgumentError(self._field, "a grammar that leads nowhere", limit)


def _all_tokens(vocab_size: int) -> NDArray[np.uint32]:
    """A mask that allows every token: ones up to `vocab_size`."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[:vocab_size] = 1
    return np.packbits(bits, bitorder="little").view("<u4")
