"""Special tokens in text: which are found, what white space they take, and that looking for them costs little."""

from __future__ import annotations

import random
import re
import time

import pytest
from gguf import TokenType

from service_common.errors import ModelFileError
from tests.tokenizer_service.vocabulary_builder import bpe_keys, vocabulary, with_tokens
from tokenizer_service.special_splitter import MAX_SPECIAL_CHARACTERS, Part, SpecialSplitter
from tokenizer_service.stripped_spaces import StrippedSpaces

LETTERS = "<|>ab \n\U0001f600"


def test_the_leftmost_match_is_taken_and_of_those_the_longest() -> None:
    """As a regular expression of all tokens finds them, longest first, for any tokens and texts."""
    rng = random.Random(5)
    for _ in range(500):
        tokens = sorted({"".join(rng.choices(LETTERS, k=rng.choice((1, 1, 2, 3, 4)))) for _ in range(rng.randrange(8))})
        ids = {token: number for number, token in enumerate(tokens)}
        expression = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
        splitter = SpecialSplitter(ids)
        for _ in range(10):
            text = "".join(rng.choices(LETTERS, k=rng.randrange(30)))
            parts = list(splitter.split(text))
            found = [part for part in parts if part.token_id is not None]
            assert found == [Part(*match.span(), ids[match[0]]) for match in expression.finditer(text)]
            assert "".join(text[part.start : part.end] for part in parts) == text
            assert all(part.start < part.end for part in parts)


def test_white_space_beside_a_token_is_part_of_it_where_it_belongs_to_it() -> None:
    """All of it before or after the token, but none that belongs to the token before; Unicode's, and no other."""
    splitter = SpecialSplitter({"<m>": 0, "<e>": 1}, StrippedSpaces(frozenset({0}), frozenset({1})))
    text = "a \u3000<m> b<e>\u2003\n\x1c<e> <m>"
    assert [(text[start:end], token_id) for start, end, token_id in splitter.split(text)] == [
        ("a", None),
        (" \u3000<m>", 0),
        (" b", None),
        ("<e>\u2003\n", 1),
        ("\x1c", None),
        ("<e> ", 1),
        ("<m>", 0),
    ]


def test_text_without_special_tokens_costs_next_to_nothing() -> None:
    """A long text is not looked at where no token can begin, however many there are: far below what encoding takes."""
    splitter = SpecialSplitter({f"<|reserved_special_token_{number}|>": number for number in range(500)})
    text = "The quick brown fox jumps over <b>the</b> lazy dog. " * 20_000
    started = time.process_time()
    assert list(splitter.split(text)) == [Part(0, len(text), None)]
    assert time.process_time() - started < 0.2  # 5 ms; looking at every character took 100


def test_special_tokens_too_long_to_be_looked_for_are_refused() -> None:
    """By name: what they cost would grow with their length."""
    longest = with_tokens(bpe_keys(), {"<" * MAX_SPECIAL_CHARACTERS: TokenType.CONTROL})
    assert vocabulary(longest).encode("<" * MAX_SPECIAL_CHARACTERS, parse_special=True) == [273]
    with pytest.raises(ModelFileError, match=f"at most {MAX_SPECIAL_CHARACTERS} characters"):
        vocabulary(with_tokens(bpe_keys(), {"<" * (MAX_SPECIAL_CHARACTERS + 1): TokenType.USER_DEFINED}))
