"""Which characters of a text each token stands for, in every kind of vocabulary."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from service_common.gguf_reader import GGUFReader
from service_common.token_table import TokenKind
from tests.tokenizer_service.character_map_builder import character_map
from tests.tokenizer_service.vocabulary_builder import (
    bpe_keys,
    character_bpe_keys,
    random_text,
    rwkv_keys,
    spm_keys,
    unigram_keys,
    vocabulary,
    with_tokens,
    word_piece_keys,
)
from tokenizer_service.offsets import ranges_of_bytes
from tokenizer_service.vocabulary import Vocabulary

BYTES = {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
MAP = character_map({"ﬁ": "fi", "A": "a", "\u00a0": " ", "e\u0301": "é", "\x01": "", "…": "..."})
# Every text is encoded as it is, byte by byte.
EXACT: dict[str, dict[str, Any]] = {
    "byte-level": bpe_keys(),
    "byte-level, whole words": bpe_keys(pre="llama-bpe"),
    "spm": spm_keys(),
    "spm without a space": spm_keys(add_space_prefix=False),
    "spm with ties": spm_keys(scores=[0.0] * 302),
    "characters": character_bpe_keys(),
    "rwkv": rwkv_keys(),
}
LOSSY: dict[str, dict[str, Any]] = {
    "unigram": unigram_keys(precompiled_charsmap=MAP),
    "unigram with bytes": with_tokens(unigram_keys(precompiled_charsmap=MAP), BYTES),
    "unigram, spaces kept": unigram_keys(remove_extra_whitespaces=False),
    "word pieces": word_piece_keys(),
    "word pieces, unknown left out": word_piece_keys(unknown_token_id=None),
    "words": character_bpe_keys(model="whitespace", **{"normalizer.lowercase": True}),
    "spm without bytes": spm_keys(token_type=[2, 3, 3, *[5] * 256, *[1] * 43]),
    "spm without bytes or unknown": spm_keys(token_type=[3, 3, 3, *[5] * 256, *[1] * 43], unknown_token_id=None),
    "byte-level without a letter": bpe_keys(token_type=[5, *bpe_keys()["tokenizer.ggml.token_type"][1:]]),
}
ALL = EXACT | LOSSY


def texts(number: int, seed: int = 1) -> Iterator[str]:
    """Random texts, full of what these vocabularies have tokens for."""
    rng = random.Random(seed)
    words = [
        "hello",
        " world",
        "the",
        "  ",
        "\n\n\n",
        "<tool>",
        "</s>",
        "日本",
        "é",
        "e\u0301",
        "ﬁ",
        "İ",
        "\x01",
        "ΑΣ ",
    ]
    for _ in range(number):
        yield "".join(rng.choice((rng.choice(words), random_text(rng, 5))) for _ in range(rng.randrange(8)))


@pytest.mark.parametrize("name", ALL)
def test_ids_are_those_of_encode_and_ranges_are_in_order(name: str) -> None:
    """With offsets the ids are the same; ranges lie within the text, and never go back."""
    tokens = vocabulary(ALL[name])
    for text in texts(300):
        for parse_special in (False, True):
            ids, ranges = tokens.encode_with_offsets(text, parse_special=parse_special)
            assert ids == tokens.encode(text, parse_special=parse_special)
            assert len(ranges) == len(ids)
            assert all(0 <= start <= end <= len(text) for start, end in ranges)
            assert all(one[0] <= two[0] and one[1] <= two[1] for one, two in pairwise(ranges)), (text, ranges)


@pytest.mark.parametrize("name", EXACT)
def test_a_token_stands_for_the_characters_of_its_bytes(name: str) -> None:
    """Where text is encoded as it is: all characters of which it has a byte, and no others."""
    tokens = vocabulary(EXACT[name])
    for text in texts(300, seed=2):
        text = text.replace("▁", "")
        ids, ranges = tokens.encode_with_offsets(text, add_special=False)
        pieces = [tokens.token_bytes(token_id) for token_id in ids]
        if tokens.add_space_prefix:
            pieces = list(without_added_spaces(tokens, ids, text))
        assert b"".join(pieces) == text.encode()
        for one, other in zip(ranges, ranges_of_bytes(pieces), strict=True):
            assert one == other or one[0] == one[1] == other[0] == other[1], (text, ranges)


def without_added_spaces(tokens: Vocabulary, ids: list[int], text: str) -> Iterator[bytes]:
    """The bytes of each token, without the space that is put before each stretch between user-defined tokens."""
    begins = True
    for token_id in ids:
        piece = tokens.token_bytes(token_id)
        yield piece.removeprefix(b" ") if begins else piece
        begins = tokens.kind(token_id) is TokenKind.USER_DEFINED


@pytest.mark.parametrize("name", LOSSY)
def test_a_piece_without_normalization_is_its_own_text(name: str) -> None:
    """A token that is spelled as letters that nothing changes stands for these letters."""
    tokens = vocabulary(LOSSY[name])
    ids, ranges = tokens.encode_with_offsets("hello", add_special=False)
    spelled = [tokens.token_bytes(token_id).decode().strip() for token_id in ids if not tokens.is_special(token_id)]
    known = [span for token_id, span in zip(ids, ranges, strict=True) if not tokens.is_special(token_id)]
    assert ["hello"[start:end] for start, end in known] == spelled


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        (bpe_keys(), "a€ hello", ["a", "€", "€", "€", " ", "hello"]),
        (spm_keys(), "the é", ["", "the", " ", "é", "é"]),
        (spm_keys(), " the", ["", "", " the"]),
        (character_bpe_keys(), "hello\n\n\nthe", ["", "hello", "\n\n\n", "t", "he"]),
        (unigram_keys(precompiled_charsmap=MAP), "  the\u00a0 the ", ["  the", "\u00a0 the", ""]),
        (unigram_keys(precompiled_charsmap=MAP), "the ﬁA", ["the", " ", "ﬁ", "ﬁ", "A", ""]),
        (word_piece_keys(), "HÉLLO cafe\u0301", ["", "HÉLLO", "cafe", ""]),
        (word_piece_keys(), "中文 qq!", ["", "中", "文", "qq", "!", ""]),
        (rwkv_keys(), " the日本", [" the", "日本"]),
        (rwkv_keys(), "旦", ["旦", "旦"]),
    ],
)
def test_ranges_tell_the_text_as_it_was_given(keys: dict[str, Any], text: str, expected: list[str]) -> None:
    """Before it was normalized: a token of two spaces' one has both, and shared characters belong to each."""
    _, ranges = vocabulary(keys).encode_with_offsets(text)
    assert [text[start:end] for start, end in ranges] == expected


def test_what_is_added_stands_for_nothing() -> None:
    """Begin-of-text lies before the text and end-of-text after it; a special token in the text is its spelling."""
    tokens = vocabulary(spm_keys(add_eos_token=True))
    ids, ranges = tokens.encode_with_offsets("the</s>the", parse_special=True)
    assert ids[0] == tokens.special.bos_id
    assert ranges == [(0, 0), (0, 3), (3, 7), (7, 10), (10, 10)]


@pytest.mark.parametrize("name", ALL)
def test_decoded_ranges_are_those_of_the_bytes(name: str) -> None:
    """For random ids: the text is decode's, and a token's range is found by decoding what stands before each byte."""
    tokens, rng = vocabulary(ALL[name]), random.Random(3)
    for skip_special in (True, False):
        for _ in range(100):
            ids = rng.choices(range(tokens.size), k=rng.randrange(12))
            text, ranges = tokens.decode_with_offsets(ids, skip_special=skip_special)
            assert text == tokens.decode(ids, skip_special=skip_special)
            pieces = [tokens.token_bytes(token_id, skip_special=skip_special) for token_id in ids]
            cut = len(b"".join(pieces).decode("utf-8", "replace")) - len(text)
            for index, (start, end) in enumerate(ranges):
                own = characters_with_bytes_of(pieces, index, cut)
                assert (list(range(start, end)) == own) or (start == end and not own)


def characters_with_bytes_of(pieces: list[bytes], index: int, cut: int) -> list[int]:
    """By definition, slowly: the characters of which the piece has a byte."""
    data, owners = b"".join(pieces), [owner for owner, piece in enumerate(pieces) for _ in piece]
    found, number, position = [], -cut, 0
    while position < len(data):
        size = next(n for n in (4, 3, 2, 1) if len(data[position : position + n].decode("utf-8", "replace")) == 1)
        if index in owners[position : position + size] and number >= 0:
            found.append(number)
        number, position = number + 1, position + size
    return found


def test_malformed_bytes_are_one_replacement_character_each() -> None:
    """As Python decodes them, whatever the bytes: characters are counted alike."""
    rng = random.Random(4)
    pool = [0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF]
    for _ in range(20_000):
        pieces = [bytes(rng.choices(pool, k=rng.randrange(4))) for _ in range(rng.randrange(4))]
        ranges = ranges_of_bytes(pieces)
        assert max((end for _, end in ranges), default=0) == len(b"".join(pieces).decode("utf-8", "replace"))


@pytest.mark.parametrize("name", ["bert-bge", "gpt-2", "llama-spm"])
def test_real_vocabularies_cover_the_text(shared_data: Path, name: str) -> None:
    """Every character that is no white space belongs to a token, in each of llama.cpp's test texts."""
    file = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    tokens = Vocabulary.from_gguf(GGUFReader(file))
    for text in Path(f"{file}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n"):
        ids, ranges = tokens.encode_with_offsets(text)
        assert ids == tokens.encode(text)
        covered = {index for start, end in ranges for index in range(start, end)}
        missing = [character for index, character in enumerate(text) if index not in covered]
        assert not "".join(missing).strip() or name == "bert-bge", missing
        assert not missing or name == "bert-bge"
