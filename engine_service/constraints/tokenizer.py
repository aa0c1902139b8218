"""The library's view of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from engine_service.constraints.limits import PARSER_LIMITS
from engine_service.constraints.token_bytes import TokenBytes
from service_common.errors import InternalError


class _Encoder:
    """What the library asks of a tokenizer. It encodes only what a grammar forces, and ours force nothing."""

    def __init__(self, tokens: TokenBytes) -> None:
        self.tokens: Sequence[bytes] = tokens.texts
        self.special_token_ids: Sequence[int] = tokens.special_ids
        self.eos_token_id = tokens.eog_ids[0]
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        raise InternalError("a grammar asked for text to be encoded, though none forces any", reason="ENCODER_ASKED")


def make_tokenizer(tokens: TokenBytes) -> LLTokenizer:
    """Of a vocabulary with at least one end-of-generation token. Takes 0.4 s for 128k tokens."""
    return LLTokenizer(TokenizerWrapper(_Encoder(tokens)), eos_token=tokens.eog_ids)


def make_matcher(tokenizer: LLTokenizer, lark: str) -> LLMatcher:
    """A matcher at the beginning of its output. Never raises: is_error() tells of a grammar that does not compile."""
    limits = LLParserLimits(**PARSER_LIMITS)
    return LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits)
