"""Where the tokens of a prompt begin in its text."""

from __future__ import annotations

from tokenizer_service.detokenizer import Detokenizer
from tokenizer_service.vocabulary import Vocabulary


class PromptOffsets:
    """Takes a prompt's tokens in order. Its text is what `Vocabulary.decode` gives, as far as the tokens have come.

    As in the output, a character of several tokens belongs to the last of them.
    """

    def __init__(self, vocabulary: Vocabulary, first_id: int, *, skip_special: bool) -> None:
        """`first_id` is the prompt's first token. `skip_special`: special tokens have no text."""
        self._detokenizer = Detokenizer(vocabulary, skip_special=skip_special)
        self._vocabulary, self._skip_special = vocabulary, skip_special
        self._is_beginning = True
        self._num_characters = 0
        self.push(first_id)

    def push(self, token_id: int) -> int:
        """Where the text of the next token begins, in characters."""
        offset = self._num_characters
        text = self._detokenizer.push(token_id)
        if self._is_beginning and not (self._skip_special and self._vocabulary.is_special(token_id)):
            self._is_beginning = False
            text = self._vocabulary.without_prefix(text, token_id)
        self._num_characters += len(text)
        return offset
