"""What a request gave, and whether that is what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import FinishReason, Request


class Answer(NamedTuple):
    """One choice. `reason` None: it never ended. `is_cut`: something outside ended it, so that it may be a prefix."""

    tokens: tuple[SampledToken, ...]
    reason: FinishReason | None
    stop_token_id: int | None = None
    is_cut: bool = False


class Answered(NamedTuple):
    """A request with the answers of all its choices, in order."""

    request: Request
    answers: tuple[Answer, ...]


def difference(answered: Answered, alone: Sequence[Answer]) -> str | None:
    """The first place where a request's answers are not those it gives alone, bit for bit; None where there is none."""
    for choice, (answer, expected) in enumerate(zip(answered.answers, alone, strict=True)):
        place = f"request {answered.request.id}, choice {choice}"
        pairs = zip(answer.tokens, expected.tokens, strict=False)
        for index, (token, expected_token) in enumerate(pairs):
            if _bits(token) != _bits(expected_token):
                return f"{place}, token {index}: {token} instead of {expected_token}"
        given, wanted = _end(answer), _end(expected)
        if given != wanted and not (answer.is_cut and len(answer.tokens) <= len(expected.tokens)):
            return f"{place} ended with {given} instead of {wanted}"
    return None


def _bits(token: SampledToken) -> tuple[object, ...]:
    """Equal only where all bits are: 0 and -0 differ."""
    logprob = None if token.logprob is None else token.logprob.hex()
    return token.token_id, logprob, [(token_id, value.hex()) for token_id, value in token.top]


def _end(answer: Answer) -> tuple[int, FinishReason | None, int | None]:
    return len(answer.tokens), answer.reason, answer.stop_token_id
