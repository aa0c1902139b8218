"""Unigram vocabularies: the best of all ways to cut a text."""

from __future__ import annotations

import math
import random

from gguf import TokenType

from tests.tokenizer_service.vocabulary_builder import unigram_keys, vocabulary, with_tokens

_KEYS = unigram_keys()
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _best_score(text: str, scores: dict[str, float], unknown: float) -> float:
    """The highest sum of scores of all ways to cut `text` into tokens and unknown characters."""
    best = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            piece = text[start:end]
            score = scores.get(piece, unknown if end - start == 1 else -math.inf)
            best[end] = max(best[end], best[start] + score)
    return best[-1]


def test_no_other_way_to_cut_has_a_higher_score() -> None:
    """For random texts the tokens give the text, and their scores add up to the best that dynamic programming finds."""
    tokens = vocabulary(unigram_keys(remove_extra_whitespaces=False))
    texts, values = _KEYS["tokenizer.ggml.tokens"], _KEYS["tokenizer.ggml.scores"]
    scores = dict(zip(texts[3:-1], values[3:-1], strict=True))
    unknown, rng = min(scores.values()) - 10, random.Random(1)
    for _ in range(2000):
        text = "".join(rng.choice(["the", "a", "aa", "her", " ", "  ", "in", "é", "z", "re"]) for _ in range(8))
        pieces = [tokens.token_spelling(token_id) for token_id in tokens.encode(text, add_special=False)]
        expected = ("▁" if text.strip(" ") else "") + text.replace(" ", "▁")
        if "<unk>" not in pieces:
            assert "".join(pieces) == expected
            assert math.isclose(sum(scores[piece] for piece in pieces), _best_score(expected, scores, unknown))


def test_unknown_characters_in_a_row_are_one_token() -> None:
    """A run of characters without a token becomes the unknown token once."""
    assert vocabulary(_KEYS).encode("a日本é", add_special=False) == [35, 2]


def test_unknown_characters_become_bytes_where_there_are_byte_tokens() -> None:
    """With all 256 byte tokens no text is unknown, and decoding gives it back."""
    tokens = vocabulary(with_tokens(_KEYS, dict.fromkeys(_BYTES, TokenType.BYTE)))
    first = tokens.size - 256
    assert tokens.encode("a日é", add_special=False) == [35, *(first + byte for byte in "日é".encode())]
    assert tokens.decode(tokens.encode("the 日 é")) == "the 日 é"


def test_text_that_spells_a_byte_or_control_token_stays_text() -> None:
    """Neither byte tokens nor special ones come from how they are spelled."""
    tokens = vocabulary(with_tokens(_KEYS, dict.fromkeys(_BYTES, TokenType.BYTE)))
    for text in ("<0x41>", "</s>", "<pad>"):
        assert tokens.token_id(text) not in tokens.encode(text, add_special=False)
        assert tokens.decode(tokens.encode(text), skip_special=True) == text


def test_without_an_unknown_token_unknown_text_is_left_out() -> None:
    """A vocabulary of two tokens has no unknown one, and gives no id for what it cannot spell."""
    keys = unigram_keys(tokens=["a", "▁"], scores=[-1.0, -2.0], token_type=None, add_eos_token=False)
    assert vocabulary(keys).encode("aéa") == [1, 0, 0]
