"""Words that the output must not hold, as the sequences of tokens that the engine takes."""

from __future__ import annotations

from clforge.v1.generation_pb2 import SamplingParams
from service_common.errors import InvalidArgumentError
from tokenizer_service.vocabulary import Vocabulary

MAX_BAD_WORDS = 64
MAX_BAD_WORD_BYTES = 256
MAX_SEQUENCE_LEN = 64  # the engine's limit, in tokens


def check_bad_words(sampling: SamplingParams) -> None:
    """Raises InvalidArgumentError for more than 64 words, or one that has not 1 to 256 bytes."""
    field, words = "params.sampling.bad_words", sampling.bad_words
    if len(words) > MAX_BAD_WORDS:
        raise InvalidArgumentError(field, f"a list of {len(words)}", f"must hold at most {MAX_BAD_WORDS} words")
    for index, word in enumerate(words):
        num_bytes = len(word.encode())
        if not 1 <= num_bytes <= MAX_BAD_WORD_BYTES:
            limit = f"must have between 1 and {MAX_BAD_WORD_BYTES} bytes"
            raise InvalidArgumentError(f"{field}[{index}]", f"a string of {num_bytes} bytes", limit)


def replace_bad_words(sampling: SamplingParams, vocabulary: Vocabulary) -> None:
    """Puts bad_token_sequences in the place of bad_words: each as it is encoded alone, and with a space before.

    InvalidArgumentError names a word that has more tokens than the engine takes.
    """
    for index, word in enumerate(sampling.bad_words):
        for ids in {tuple(vocabulary.encode(text, add_special=False)): None for text in (word, f" {word}")}:
            if len(ids) > MAX_SEQUENCE_LEN:
                limit = f"must have at most {MAX_SEQUENCE_LEN}"
                raise InvalidArgumentError(f"params.sampling.bad_words[{index}]", f"a word of {len(ids)} tokens", limit)
            if ids:
                sampling.bad_token_sequences.add(ids=ids)
    sampling.ClearField("bad_words")
