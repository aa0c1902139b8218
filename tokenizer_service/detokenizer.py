"""Token ids to text, one token at a time."""

from __future__ import annotations

import codecs
from typing import Protocol

from tokenizer_service.offsets import num_begun

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class HasTokenBytes(Protocol):
    """What a detokenizer needs of a vocabulary."""

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """What the token adds to a text, which is UTF-8 once all tokens are joined. Never raises."""


class Detokenizer:
    """The text of a sequence of tokens that continues a prompt.

    Law: the texts returned by `push` for each id, and by `flush` at the end, concatenated, equal
    `vocabulary.decode_continuation(ids)`. Each is whole characters; a character comes with the token that completes
    it. Bytes that cannot become a character come as U+FFFD as soon as that is certain, so no token ever breaks a
    stream. Time and memory per token do not depend on the tokens before it.

    Attributes:
        num_characters: of the text returned so far.
        token_start: where the latest token's text begins in all of it: the first character of which the token has a
            byte; for one without bytes, after the last character that has begun before it.
    """

    def __init__(self, vocabulary: HasTokenBytes, *, skip_special: bool = True) -> None:
        self._vocabulary = vocabulary
        self._skip_special = skip_special
        self._decoder = _Utf8Decoder("replace")
        self._is_pending = False
        self._held_tokens = 0
        self.num_characters = self.token_start = 0

    @property
    def held_tokens(self) -> int:
        """How many of the latest tokens have given no text yet, because their bytes begin a character."""
        return self._held_tokens

    def push(self, token_id: int) -> str:
        """The text that this token adds; may be empty. Never raises."""
        raw = self._vocabulary.token_bytes(token_id, skip_special=self._skip_special)
        self.token_start = self.num_characters
        if not self._is_pending and raw.isascii():
            self.num_characters += len(raw)
            return raw.decode("ascii")
        if self._is_pending:
            self.token_start += num_begun(self._decoder.getstate()[0] + raw[:1]) - bool(raw)
        text = self._decoder.decode(raw)
        self.num_characters += len(text)
        self._is_pending = bool(self._decoder.getstate()[0])
        self._held_tokens = self._held_tokens + 1 if self._is_pending and not text else 0
        return text

    def flush(self) -> str:
        """End of the sequence: U+FFFD for a character that was never completed, else nothing."""
        self._held_tokens, self._is_pending = 0, False
        text = self._decoder.decode(b"", final=True)
        self.num_characters += len(text)
        return text
