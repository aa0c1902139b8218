"""Every kind of vocabulary: llama.cpp's ids, time that does not explode, and what goes around a text."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from service_common.errors import ModelFileError
from tests.tokenizer_service.character_map_builder import character_map
from tests.tokenizer_service.vocabulary_builder import (
    bpe_keys,
    character_bpe_keys,
    random_text,
    reader,
    rwkv_keys,
    spm_keys,
    unigram_keys,
    vocabulary,
    with_tokens,
    word_piece_keys,
)
from tokenizer_service.added_tokens import AddedTokens
from tokenizer_service.vocabulary import Vocabulary

_GOLDEN = json.loads(Path(__file__).with_name("llama_cpp_ids.json").read_text(encoding="utf-8"))
_REPLACEMENTS = {
    **{"ﬁ": "fi", "e\u0301": "é", "①": "1", "\t": " ", "\n": " ", "\u200b": "", "½": "1\u20442", "É": "E"},
    **{"a\u0308": "ä", "a\u0308\u0301": "ǟ"},
}
_GOLDEN_KEYS = {
    "unigram": unigram_keys(precompiled_charsmap=character_map(_REPLACEMENTS)),
    "unigram with all spaces": unigram_keys(remove_extra_whitespaces=False),
    "unigram without prefix": unigram_keys(remove_extra_whitespaces=False, add_space_prefix=False),
    "word piece": word_piece_keys(),
    "word piece with case": word_piece_keys(**{"normalizer.lowercase": False}),
    "gemma4": character_bpe_keys(),
    "sarvam-moe": character_bpe_keys(model="gpt2", pre="sarvam-moe"),
    "whitespace": character_bpe_keys(model="whitespace", pre="whitespace"),
    "rwkv": rwkv_keys(),
}
_KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "gpt2": bpe_keys,
    "gemma4": character_bpe_keys,
    "llama": spm_keys,
    "t5": unigram_keys,
    "bert": word_piece_keys,
    "rwkv": rwkv_keys,
}


@pytest.mark.parametrize("kind", _GOLDEN["ids"])
def test_ids_are_llama_cpps(kind: str) -> None:
    """The ids are those that llama.cpp gave for a file of the very same keys, with the tokens around a text."""
    tokens = vocabulary(_GOLDEN_KEYS[kind])
    assert [tokens.encode(text) for text in _GOLDEN["texts"]] == _GOLDEN["ids"][kind]


@pytest.mark.parametrize("kind", _KINDS)
def test_one_very_long_word_takes_bounded_time(kind: str) -> None:
    """300,000 times the same characters take seconds at most: no algorithm is quadratic in the length of a word."""
    tokens = vocabulary(_KINDS[kind]())
    for characters in ("a", " ", "7", "中", "\n", "a\u0301", "'", "<|", "▁", "hello"):
        started = time.monotonic()
        tokens.encode(characters * (300_000 // len(characters)), parse_special=True)
        assert time.monotonic() - started < 10, characters


@pytest.mark.parametrize(
    ("keys", "around"),
    [
        (word_piece_keys(), AddedTokens(2, 3)),
        (word_piece_keys(add_bos_token=False), AddedTokens(None, 3)),
        (word_piece_keys(add_sep_token=False), AddedTokens(2, None)),
        (word_piece_keys(eos_token_id=0, add_eos_token=True), AddedTokens(2, 3)),
        (unigram_keys(), AddedTokens(None, 1)),
        (unigram_keys(add_eos_token=False), AddedTokens(None, None)),
        (unigram_keys(cls_token_id=0, add_bos_token=True), AddedTokens(0, 1)),
        (character_bpe_keys(add_bos_token=False), AddedTokens(1, None)),
        (character_bpe_keys(add_eos_token=True), AddedTokens(1, 2)),
        (character_bpe_keys(model="gpt2", pre="sarvam-moe"), AddedTokens(None, None)),
        (bpe_keys(pre="roberta-bpe", add_sep_token=True), AddedTokens(None, None)),
        (rwkv_keys(), AddedTokens(None, None)),
    ],
)
def test_each_kind_adds_its_own_tokens(keys: dict[str, Any], around: AddedTokens) -> None:
    """BERT adds a classifier and a separator, T5 end-of-text, Gemma 4 begin-of-text even where a file denies it."""
    assert vocabulary(keys).added == around


def test_decoding_leaves_out_what_encoding_adds() -> None:
    """Decoding gives the text back, as far as normalization kept it: no special token, no space before it."""
    assert vocabulary(unigram_keys()).decode(vocabulary(unigram_keys()).encode("the  her")) == "the her"
    assert vocabulary(word_piece_keys()).decode(vocabulary(word_piece_keys()).encode("Hello unaffable")) == (
        "hello unaffable"
    )
    assert vocabulary(character_bpe_keys()).decode(vocabulary(character_bpe_keys()).encode("  é\n日本")) == "  é\n日本"


@pytest.mark.parametrize(
    "keys",
    [
        {"general.architecture": "nomic-bert-moe"} | with_tokens(unigram_keys(), {"<mask>": TokenType.CONTROL}),
        {"general.name": "Modern-BERT base"} | with_tokens(word_piece_keys(), {"[MASK]": TokenType.CONTROL}),
        with_tokens(bpe_keys(pre="jina-v2-code"), {"<mask>": TokenType.CONTROL}),
    ],
)
def test_a_mask_takes_the_space_before_it(keys: dict[str, Any]) -> None:
    """Of some models white space before the mask token belongs to it, and white space after it does not."""
    tokens = vocabulary(keys)
    mask = tokens.token_spelling(tokens.size - 1)
    assert tokens.encode(f"he \t{mask}", parse_special=True) == tokens.encode(f"he{mask}", parse_special=True)
    alone = tokens.encode("he", add_special=False)
    assert tokens.encode(f"{mask}he", parse_special=True, add_special=False) == [tokens.size - 1, *alone]


def test_rwkv_takes_the_longest_token_of_bytes() -> None:
    """Tokens may be parts of characters; the longest one is taken, and any text of any bytes survives."""
    tokens, rng = vocabulary(rwkv_keys()), random.Random(1)
    assert [tokens.token_bytes(token_id) for token_id in tokens.encode("then 日本日")] == [
        *(b"then", b" ", "日本".encode(), b"\xe6\x97", b"\xa5"),
    ]
    for _ in range(2000):
        text = random_text(rng)
        assert tokens.decode(tokens.encode(text)) == text


def test_an_end_tag_is_text_where_the_model_has_other_ends() -> None:
    """Gemma 4's </s> is an HTML tag and ends no generation; its <turn|> and <|tool_response> do."""
    added = {"</s>": TokenType.NORMAL, "<turn|>": TokenType.CONTROL, "<|tool_response>": TokenType.NORMAL}
    tokens = vocabulary(with_tokens(character_bpe_keys(), added))
    assert tokens.special.eog_ids == {2, tokens.size - 2, tokens.size - 1}
    assert not tokens.is_special(tokens.size - 3)


def test_the_rule_can_be_overridden_by_one_of_characters() -> None:
    """A rule that is named explicitly takes the place of the file's, for any kind that has rules."""
    keys = character_bpe_keys(model="gpt2", pre="new-rule")
    with pytest.raises(ModelFileError, match=r"pre is new-rule; .*--pre-tokenizer names another"):
        vocabulary(keys)
    tokens = Vocabulary.from_gguf(reader(keys), pre_tokenizer="sarvam-moe")
    assert tokens.encode("hello world") == vocabulary(keys | {"tokenizer.ggml.pre": "sarvam-moe"}).encode("hello world")
