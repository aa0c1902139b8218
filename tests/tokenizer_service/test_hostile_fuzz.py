"""Vocabularies changed at random: refused with an error that names the field, or usable, and never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from service_common.errors import ModelFileError
from tests.tokenizer_service.character_map_builder import character_map
from tests.tokenizer_service.vocabulary_builder import (
    bpe_keys,
    character_bpe_keys,
    random_text,
    rwkv_keys,
    spm_keys,
    unigram_keys,
    vocabulary,
    word_piece_keys,
)

_CHARACTERS = character_map({"ﬁ": "fi", "e\u0301": "é", "①": "1", "\t": " "})
_KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "gpt2": bpe_keys,
    "gemma4": character_bpe_keys,
    "llama": spm_keys,
    "t5": lambda: unigram_keys(precompiled_charsmap=_CHARACTERS),
    "bert": word_piece_keys,
    "rwkv": rwkv_keys,
}
_STRINGS = ["", " ", "▁", "\0", "\0\0unknown", "##a", "<0x41>", "<0x-1>", "a b", "\\x", "\\", b"\xff", "\U0010ffff"]
_NUMBERS = [-1, 0, 1, 2, 4, 6, 7, 2**31 - 1, -(2**31)]
_FLOATS = [0.0, -1e30, 1e30, float("nan"), float("inf"), -0.0]


def _element(rng: random.Random, like: Any) -> Any:
    choices = _FLOATS if isinstance(like, float) else _NUMBERS if isinstance(like, int) else _STRINGS
    return rng.choice(choices)


def _changed(rng: random.Random, value: Any) -> Any:
    """The value with something wrong with it; None: the key is left out."""
    match value:
        case bool():
            return rng.choice([not value, None, 3])
        case int():
            return rng.choice([None, "text", *_NUMBERS])
        case str():
            return rng.choice([None, "", "default", "whitespace", "gemma4"])
        case bytes():
            at = rng.randrange(len(value))
            return rng.choice([value[:at], value[:at] + rng.randbytes(4) + value[at + 4 :], rng.randbytes(at + 1)])
    at = rng.randrange(len(value))
    other = list(value)
    match rng.randrange(5):
        case 0:
            return other[:at] or None
        case 1:
            return other + other[at:]
        case 2:
            rng.shuffle(other)
        case _:
            for _ in range(rng.randrange(1, 6)):
                other[rng.randrange(len(other))] = _element(rng, other[at])
    return other


@pytest.mark.parametrize("kind", _KINDS)
def test_changed_vocabularies_are_refused_or_usable(kind: str) -> None:
    """Of 500 vocabularies with something wrong in one to three keys, each gives a ModelFileError or encodes and decodes
    any text; no panic of a library, which no `except Exception` would catch, gets out."""
    rng, refusals = random.Random(kind), list[str]()
    for _ in range(500):
        keys = _KINDS[kind]()
        for key in rng.sample(sorted(keys), rng.randrange(1, 4)):
            keys[key] = _changed(rng, keys[key])
        try:
            tokens = vocabulary({key: value for key, value in keys.items() if value is not None})
        except ModelFileError as error:
            refusals.append(str(error))
            continue
        for text in ("hello world", "", random_text(rng, 30)):
            ids = tokens.encode(text, parse_special=rng.random() < 0.5)
            assert all(0 <= token_id < tokens.size for token_id in ids)
            tokens.decode(ids, skip_special=False).encode("utf-8")
        tokens.decode(range(tokens.size), skip_special=False)
    assert 50 < len(refusals) < 500
    assert all("tokenizer.ggml." in refusal for refusal in refusals)
