"""Where the tokens of a prompt begin in its text."""

from __future__ import annotations

from tokenizer_service.detokenizer import Detokenizer
from tokenizer_service.vocabulary import Vocabulary


class PromptOffsets:
    """Takes a prompt's tokens in order. Its text is what `Vocabulary.decode` gives, as far as the tokens have come."""

    def __init__(self, vocabulary: Vocabulary, first_id: int, *, skip_special: bool) -> None:
        """`first_id` is the prompt's first token. `skip_special`: special tokens have no text."""
        self._detokenizer = Detokenizer(vocabulary, skip_special=skip_special)
        self._vocabulary, self._skip_special = vocabulary, skip_special
        self._is_beginning = True
        self._num_hidden = 0
        self.push(first_id)

    def push(self, token_id: int) -> int:
        """Where the text of the next token begins: the first character of which it has a byte."""
        self._detokenizer.push(token_id)
        if self._is_beginning and not (self._skip_special and self._vocabulary.is_special(token_id)):
            self._is_beginning = False
            self._num_hidden = int(self._vocabulary.begins_with_prefix(token_id))
        return max(self._detokenizer.token_start - self._num_hidden, 0)
