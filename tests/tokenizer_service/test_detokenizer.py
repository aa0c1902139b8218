"""Streaming detokenization: its law on random ids, and what it holds back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from service_common.gguf_reader import GGUFReader
from tests.tokenizer_service.vocabulary_builder import (
    bpe_keys,
    character_bpe_keys,
    rwkv_keys,
    spm_keys,
    unigram_keys,
    vocabulary,
    word_piece_keys,
)
from tokenizer_service.detokenizer import Detokenizer
from tokenizer_service.offsets import ranges_of_bytes
from tokenizer_service.vocabulary import Vocabulary


def _check_law(tokens: Vocabulary, ids: list[int], *, skip_special: bool) -> None:
    detokenizer = Detokenizer(tokens, skip_special=skip_special)
    pieces = [tokens.token_bytes(token_id, skip_special=skip_special) for token_id in ids]
    texts, starts, num_silent = [], [], pieces.count(b"")
    for token_id in ids:
        texts.append(detokenizer.push(token_id))
        starts.append(detokenizer.token_start)
        assert detokenizer.held_tokens <= 3 + num_silent
    texts.append(detokenizer.flush())
    for text in texts:
        text.encode("utf-8")
    assert "".join(texts) == tokens.decode_continuation(ids, skip_special=skip_special)
    assert detokenizer.held_tokens == 0
    assert detokenizer.num_characters == len("".join(texts))
    assert starts == [start for start, _ in ranges_of_bytes(pieces)]


def _check_random_ids(tokens: Vocabulary, num_sequences: int, seed: int) -> None:
    """Sequences of any tokens, and of tokens that are mostly not whole characters."""
    rng = random.Random(seed)
    partial = [token_id for token_id in range(tokens.size) if not _is_text(tokens.token_bytes(token_id))]
    for _ in range(num_sequences):
        share = rng.choice((0.0, 0.5, 0.9))
        ids = [
            rng.choice(partial) if partial and rng.random() < share else rng.randrange(tokens.size)
            for _ in range(rng.randrange(12))
        ]
        _check_law(tokens, ids, skip_special=rng.random() < 0.5)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    "keys", [spm_keys(), bpe_keys(), unigram_keys(), word_piece_keys(), character_bpe_keys(), rwkv_keys()]
)
def test_deltas_concatenated_are_the_whole_text(keys: dict[str, object]) -> None:
    """For 17,000 random sequences of ids of each kind of vocabulary, 102,000 in all, the deltas are valid UTF-8 and,
    concatenated, the text of all ids. (CLI-5)"""
    _check_random_ids(vocabulary(keys), 17_000, seed=1)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_law_holds_on_real_vocabularies(shared_data: Path, name: str) -> None:
    """The same for real vocabularies."""
    reader = GGUFReader(shared_data / "vocab" / f"ggml-vocab-{name}.gguf")
    _check_random_ids(Vocabulary.from_gguf(reader), 3_000, seed=2)


def test_a_character_comes_when_it_is_complete() -> None:
    """The bytes of a character are held until its last one, and the tokens held are counted."""
    tokens = vocabulary(spm_keys())
    detokenizer = Detokenizer(tokens)
    steps = [(detokenizer.push(3 + byte), detokenizer.held_tokens) for byte in "é€".encode()]
    assert steps == [("", 1), ("é", 0), ("", 1), ("", 2), ("€", 0)]


def test_a_malformed_byte_is_replaced_as_soon_as_it_is_certain() -> None:
    """A byte that cannot start a character is replaced at once, one that is not continued with the next token."""
    detokenizer = Detokenizer(vocabulary(spm_keys()))
    assert detokenizer.push(3 + 0xFF) == "\ufffd"
    assert detokenizer.push(3 + 0xE2) == ""
    assert detokenizer.push(3 + ord("x")) == "\ufffdx"
    assert detokenizer.push(3 + 0xF0) == ""
    assert detokenizer.flush() == "\ufffd"


def test_control_tokens_between_bytes_are_no_text() -> None:
    """A control token gives no text, or its spelling when that is asked for."""
    tokens = vocabulary(spm_keys())
    assert [Detokenizer(tokens).push(2), Detokenizer(tokens, skip_special=False).push(2)] == ["", "</s>"]
    detokenizer = Detokenizer(tokens)
    assert [detokenizer.push(token_id) for token_id in (3 + 0xC3, 2, 3 + 0xA9)] == ["", "", "é"]


def test_an_unknown_id_does_not_break_the_stream() -> None:
    """An id outside the vocabulary, which a padded model may sample, comes as U+FFFD. (CLI-5)"""
    detokenizer = Detokenizer(vocabulary(spm_keys()))
    assert detokenizer.push(10**9) == "\ufffd"


def test_the_space_before_a_word_is_kept() -> None:
    """Generated text continues a prompt, so the first token's space stays."""
    tokens = vocabulary(spm_keys())
    assert Detokenizer(tokens).push(tokens.token_id("▁the") or 0) == " the"
