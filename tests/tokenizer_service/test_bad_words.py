"""Bad words become sequences of tokens."""

from __future__ import annotations

import pytest

from clforge.v1.generation_pb2 import SamplingParams
from service_common.errors import InvalidArgumentError
from tests.tokenizer_service.vocabulary_builder import bpe_keys, vocabulary
from tokenizer_service.bad_words import MAX_BAD_WORDS, check_bad_words, replace_bad_words


def test_a_word_is_given_alone_and_with_a_space_before() -> None:
    """Each way once, as the vocabulary encodes it; what the client gave as sequences stays."""
    words = vocabulary(bpe_keys())
    sampling = SamplingParams(bad_words=["hello", " world"])
    sampling.bad_token_sequences.add(ids=[1, 2])
    replace_bad_words(sampling, words)
    given = [list(sequence.ids) for sequence in sampling.bad_token_sequences]
    texts = ("hello", " hello", " world", "  world")
    assert given == [[1, 2], *(words.encode(text, add_special=False) for text in texts)]
    assert not sampling.bad_words


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["a"] * (MAX_BAD_WORDS + 1), "params.sampling.bad_words"),
        (["a", ""], "params.sampling.bad_words[1]"),
        (["é" * 129], "params.sampling.bad_words[0]"),
    ],
)
def test_too_many_and_too_long_words_are_named(words: list[str], field: str) -> None:
    """At most 64 words of 1 to 256 bytes."""
    with pytest.raises(InvalidArgumentError) as caught:
        check_bad_words(SamplingParams(bad_words=words))
    assert caught.value.field == field


def test_a_word_of_too_many_tokens_is_named() -> None:
    """The engine takes sequences of up to 64 tokens."""
    with pytest.raises(InvalidArgumentError, match="a word of 65 tokens"):
        replace_bad_words(SamplingParams(bad_words=["x" * 65]), vocabulary(bpe_keys()))
