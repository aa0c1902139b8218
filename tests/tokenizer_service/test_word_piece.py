"""WordPiece vocabularies: what BERT's own tokenizer gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from gguf import TokenType
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from service_common.gguf_reader import GGUFReader
from tests.tokenizer_service.vocabulary_builder import random_text, vocabulary, with_tokens, word_piece_keys
from tokenizer_service.vocabulary import Vocabulary


def _pieces(tokens: Vocabulary, text: str) -> list[str]:
    return [tokens.token_spelling(token_id) for token_id in tokens.encode(text, add_special=False)]


def test_ids_are_those_of_berts_own_tokenizer(shared_data: Path) -> None:
    """A real vocabulary gives what the tokenizers library gives for BERT's own spelling of it, for any Unicode text."""
    tokens = Vocabulary.from_gguf(GGUFReader(shared_data / "vocab" / "ggml-vocab-bert-bge.gguf"))
    spellings = [tokens.token_spelling(token_id) for token_id in range(tokens.size)]
    own = {
        text[1:] if text.startswith("▁") else text if text[0] == "[" and len(text) > 2 else f"##{text}": token_id
        for token_id, text in enumerate(spellings)
    }
    oracle = Tokenizer(models.WordPiece(own, unk_token="[UNK]", max_input_chars_per_word=100))
    oracle.normalizer, oracle.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    rng = random.Random(1)
    words = ["Café", " ", "don't", "中文", "हिन्दी", "İstanbul", "##s", "[MASK]", "\u200b", "a" * 99, "b" * 101, "▁x"]
    texts = [random_text(rng, 20) for _ in range(2000)]
    texts += ["".join(rng.choices(words, k=rng.randrange(6))) for _ in range(1000)]
    for text in texts:
        assert tokens.encode(text, add_special=False) == oracle.encode(text, add_special_tokens=False).ids, repr(text)


def test_words_are_cut_into_the_longest_tokens() -> None:
    """A word's first token is spelled with U+2581, what goes on without; a word that cannot be cut is unknown."""
    tokens = vocabulary(word_piece_keys())
    assert _pieces(tokens, "hellob unaffable!") == ["▁hello", "b", "▁un", "aff", "able", "▁!"]
    assert _pieces(tokens, "helloz z") == ["[UNK]", "[UNK]"]


@pytest.mark.parametrize(
    ("keys", "pieces"),
    [
        (word_piece_keys(), ["▁cafe", "▁hello"]),
        (word_piece_keys(**{"normalizer.lowercase": False}), ["[UNK]", "[UNK]"]),
        (word_piece_keys(**{"normalizer.strip_accents": False}), ["[UNK]", "▁hello"]),
        (word_piece_keys(**{"normalizer.lowercase": False, "normalizer.strip_accents": True}), ["[UNK]", "[UNK]"]),
    ],
)
def test_case_and_accents_are_kept_as_the_file_says(keys: dict[str, object], pieces: list[str]) -> None:
    """Letters are lower-cased, and with that accents dropped, unless the file says otherwise."""
    assert _pieces(vocabulary(keys), "Café HELLO") == pieces


def test_ideographs_and_punctuation_are_words() -> None:
    """Each ideograph and each sign of punctuation is a word of its own."""
    assert _pieces(vocabulary(word_piece_keys()), "a中文,[a]") == ["▁a", "▁中", "▁文", "▁,", "▁[", "▁a", "▁]"]


def test_a_word_of_more_than_100_characters_is_unknown() -> None:
    """As in BERT's own tokenizer, which bounds the work for a word."""
    tokens = vocabulary(word_piece_keys())
    assert set(_pieces(tokens, "h" + "b" * 99)) == {"▁h", "b"}
    assert _pieces(tokens, "h" + "b" * 100) == ["[UNK]"]


def test_without_an_unknown_token_unknown_words_are_left_out() -> None:
    """A vocabulary too small for the presumed id of [UNK] gives nothing for a word that it cannot spell."""
    assert vocabulary(word_piece_keys(unknown_token_id=None)).encode("zz a zz") == [2, 9, 3]


def test_no_spelling_in_a_file_is_taken_for_another() -> None:
    """Tokens with the characters that are used inside for what goes on in a word do no harm."""
    tokens = vocabulary(with_tokens(word_piece_keys(), dict.fromkeys(["▁\0b", "\0\0unknown"], TokenType.NORMAL)))
    assert _pieces(tokens, "ab zz") == ["▁a", "b", "[UNK]"]
