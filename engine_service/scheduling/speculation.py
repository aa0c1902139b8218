"""Whether a request's tokens are guessed ahead, and from what: protos/clforge/v1/generation.proto."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service_common.errors import InvalidArgumentError

MAX_DRAFT_TOKENS = 16
MAX_NGRAM_SIZE = 8
_DEFAULT_NGRAM_SIZE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """What a request says about drafts. `create` checks the values; the constructor trusts them."""

    max_draft_tokens: int | None = None  # of a draft; 0: none is made; None: what the server is configured to
    ngram_size: int = _DEFAULT_NGRAM_SIZE  # longest run of last tokens that is looked up in what came before

    @classmethod
    def create(cls, *, max_draft_tokens: int | None = None, ngram_size: int | None = None) -> Speculation:
        """Checked values; None takes the default."""
        if max_draft_tokens is not None:
            _check("max_draft_tokens", max_draft_tokens, 0, MAX_DRAFT_TOKENS)
        if ngram_size is None:
            ngram_size = _DEFAULT_NGRAM_SIZE
        _check("ngram_size", ngram_size, 1, MAX_NGRAM_SIZE)
        return cls(max_draft_tokens=max_draft_tokens, ngram_size=ngram_size)


SERVER_DEFAULT: Final = Speculation()


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(f"params.speculation.{name}", value, f"must be between {low} and {high}")
