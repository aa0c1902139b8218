"""The engine knows the bytes of tokens as the tokenizer does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine_service.constraints.token_bytes import TokenBytes
from service_common.gguf_reader import GGUFReader
from tests.tokenizer_service.vocabulary_builder import (
    bpe_keys,
    character_bpe_keys,
    reader,
    rwkv_keys,
    spm_keys,
    unigram_keys,
    word_piece_keys,
)
from tokenizer_service.pre_tokenizers import CHARACTER_RULES
from tokenizer_service.vocabulary import Vocabulary

_KEYS: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt2": bpe_keys,
    "gemma4": character_bpe_keys,
    "llama": spm_keys,
    "t5": unigram_keys,
    "bert": word_piece_keys,
    "rwkv": rwkv_keys,
    "model whitespace": lambda: character_bpe_keys(model="whitespace", pre="whitespace"),
    **{rule: partial(character_bpe_keys, model="gpt2", pre=rule) for rule in CHARACTER_RULES},
}


def _check(source: GGUFReader) -> None:
    vocabulary = Vocabulary.from_gguf(source)
    found = TokenBytes.from_gguf(source, vocabulary.size)
    assert found.texts == [vocabulary.token_bytes(token_id) for token_id in range(vocabulary.size)]
    assert found.special_ids == [token_id for token_id in range(vocabulary.size) if vocabulary.is_special(token_id)]
    assert found.eog_ids == sorted(vocabulary.special.eog_ids)


@pytest.mark.parametrize("kind", _KEYS)
def test_every_kind_of_vocabulary_gives_the_tokenizers_bytes(kind: str) -> None:
    """The two services agree on what each token adds to a text."""
    _check(reader(_KEYS[kind]()))


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "phi-3", "qwen2", "bert-bge"])
def test_real_vocabularies_give_the_tokenizers_bytes(name: str, shared_data: Path) -> None:
    """The same for vocabularies that are in use."""
    with GGUFReader(shared_data / "vocab" / f"ggml-vocab-{name}.gguf") as source:
        _check(source)


def test_a_vocabulary_is_filled_up_to_the_models_size() -> None:
    """Rows of the embedding that no token has add nothing to a text."""
    source = reader(bpe_keys())
    size = Vocabulary.from_gguf(source).size
    assert TokenBytes.from_gguf(source, size + 3).texts[size:] == [b""] * 3
