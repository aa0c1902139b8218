"""The rules by which byte-level vocabularies cut text into words."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from service_common.errors import ConfigError
from tests.tokenizer_service.vocabulary_builder import (
    bpe_keys,
    random_text,
    reader,
    spm_keys,
    vocabulary,
    word_piece_keys,
)
from tokenizer_service.byte_level_bpe import words_of
from tokenizer_service.pre_tokenizers import PRE_TOKENIZERS
from tokenizer_service.vocabulary import Vocabulary


def test_the_rule_can_be_overridden() -> None:
    """An unknown pre-tokenizer rule is used as another one that is named explicitly."""
    tokens = Vocabulary.from_gguf(reader(bpe_keys(pre="new-rule")), pre_tokenizer="gpt-2")
    assert tokens.encode("hello world") == vocabulary(bpe_keys()).encode("hello world")


@pytest.mark.parametrize(
    ("rule", "text", "words"),
    [
        ("gpt-2", "I'LL don't  1234\n\n x", ["I", "'", "LL", "·don", "'t", "·", "·1234", "⏎⏎", "·x"]),
        ("llama-bpe", "I'LL don't  1234\n\n x", ["I", "'LL", "·don", "'t", "·", "·", "123", "4", "⏎⏎", "·x"]),
        ("qwen2", "a 12\n\n x", ["a", "·", "1", "2", "⏎⏎", "·x"]),
        ("starcoder", "a 12 x", ["a", "·", "1", "2", "·x"]),
        ("falcon", "a,b 12345", ["a", ",", "b", "·", "123", "45"]),
        ("deepseek-v3", "a中b~=", ["a", "中", "b", "~="]),
        ("deepseek-llm", "Ωδ mega 한 7", ["Ωδ", "·mega", "·", "한", "·", "7"]),
        ("gpt-4o", "camelCase /n/", ["camel", "Case", "·/", "n", "/"]),
        ("tekken", "HTTPServer12", ["HTTPServer", "1", "2"]),
        ("superbpe", "a1234567", ["a", "1", "234", "567"]),
        ("afmoe", "a1234567", ["a", "1", "234", "567"]),
        ("afmoe", "12  1234567890 x", ["12", "··", "1", "234", "567", "890", "·x"]),
        ("tiny_aya", "a  1234 1234x", ["a", "··", "1", "234", "·", "123", "4", "x"]),
        ("superbpe", "1000² 12 123456", ["1", "000²", "·", "12", "·", "123", "456"]),
        ("glm5", "x \n\n  \n  y", ["x", "·⏎⏎··⏎", "·", "·y"]),
        ("kimi-k2", "abc我想Def", ["abc", "我想", "Def"]),
        ("default", "a 12345$", ["a", "·", "123", "45", "$"]),
    ],
)
def test_rules_cut_words(rule: str, text: str, words: list[str]) -> None:
    """Each rule cuts text into words as its expressions say."""
    cut = words_of(PRE_TOKENIZERS[rule]).pre_tokenize_str(text)
    spelled = [text[start:end] for _, (start, end) in cut]
    assert [word.replace(" ", "·").replace("\n", "⏎") for word in spelled] == words


def test_ten_million_spaces_are_no_panic() -> None:
    """A run of white space longer than the steps back that the library allows an expression is cut like any other."""
    text = "a" + " " * 10_200_000 + "b"
    cut = words_of(PRE_TOKENIZERS["llama-bpe"]).pre_tokenize_str(text)
    assert [end - start for _, (start, end) in cut] == [1, 10_199_999, 2]


@pytest.mark.parametrize("rule", PRE_TOKENIZERS)
def test_every_rule_loses_nothing(rule: str) -> None:
    """Every known rule can be built, and text passes through it unchanged, in time that does not explode."""
    tokens, rng = Vocabulary.from_gguf(reader(bpe_keys()), pre_tokenizer=rule), random.Random(4)
    long_words = ["1" * 20_000, " " * 200_000 + "a", "aA" * 10_000, "\u3000" * 60_000 + "!"]
    for text in [random_text(rng, 40) for _ in range(100)] + long_words:
        started = time.monotonic()
        assert tokens.decode(tokens.encode(text, add_special=False)) == text
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("keys", "rule", "told"),
    [
        (bpe_keys(), "no-such-rule", "the rules are"),
        (spm_keys(), "gpt-2", "a vocabulary of kind llama has no such rule"),
        (word_piece_keys(), "gpt-2", "a vocabulary of kind bert has no such rule"),
    ],
)
def test_an_override_that_cannot_apply_is_an_error_of_the_option(keys: dict[str, Any], rule: str, told: str) -> None:
    """An override that no rule has, or that the vocabulary has no use for, blames the option and not the file."""
    with pytest.raises(ConfigError, match=f"--pre-tokenizer is {rule}; .*{told}"):
        Vocabulary.from_gguf(reader(keys), pre_tokenizer=rule)
