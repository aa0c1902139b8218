"""Small vocabularies for tests, as GGUF files in memory."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType, TokenType

from service_common.gguf_reader import GGUFReader
from tests import gguf_builder
from tests.gguf_builder import array_value, file_bytes, key_value, string, text_value
from tokenizer_service.vocabulary import Vocabulary

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_LETTERS = [*map(chr, _PRINTABLE), *(chr(256 + n) for n in range(256 - len(_PRINTABLE)))]
_MERGES = [
    "h e",
    "l l",
    "he ll",
    "hell o",
    "Ġ w",
    "o r",
    "Ġw or",
    "l d",
    "Ġwor ld",
    "Ġ Ġ",
    "< /",
    "</ s",
    "</s >",
    "ð Ł",
]
_SPECIALS = {"<|endoftext|>": TokenType.CONTROL, "<tool>": TokenType.USER_DEFINED, "[UNUSED]": TokenType.UNUSED}


def spm_keys(**changes: Any) -> dict[str, Any]:
    """A SentencePiece-BPE vocabulary, with some of its keys (by their last part) changed; None takes a key away."""
    return _changed(gguf_builder.tokenizer_keys(), changes)


def bpe_keys(**changes: Any) -> dict[str, Any]:
    """A byte-level BPE vocabulary of 273 tokens: 256 letters, 14 merges, and three tokens that are not text."""
    merged = [merge.replace(" ", "") for merge in _MERGES]
    tokens = [*BYTE_LETTERS, *merged, *_SPECIALS]
    types = [TokenType.NORMAL] * (len(tokens) - len(_SPECIALS)) + list(_SPECIALS.values())
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(token_type) for token_type in types],
        "tokenizer.ggml.merges": list(_MERGES),
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|endoftext|>"),
    }
    return _changed(keys, changes)


def reader(keys: Mapping[str, Any]) -> GGUFReader:
    """A file of these keys, without tensors."""
    return GGUFReader.from_bytes(file_bytes([_encoded(key, value) for key, value in keys.items()]), "tiny.gguf")


def vocabulary(keys: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a file of these keys."""
    return Vocabulary.from_gguf(reader(keys))


def with_tokens(keys: Mapping[str, Any], added: Mapping[str, TokenType]) -> dict[str, Any]:
    """The same vocabulary with tokens appended, with scores far below all others where it has scores."""
    result = dict(keys)
    result["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], *added]
    result["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], *map(int, added.values())]
    if "tokenizer.ggml.scores" in keys:
        result["tokenizer.ggml.scores"] = [*keys["tokenizer.ggml.scores"], *(-1e6 - n for n in range(len(added)))]
    return result


def _changed(keys: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(keys) | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {key: value for key, value in changed.items() if value is not None}


def _encoded(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return text_value(key, value)
    if isinstance(value, bool):
        return key_value(key, GGUFValueType.BOOL, bytes([value]))
    if isinstance(value, int):
        return key_value(key, GGUFValueType.INT64, struct.pack("<q", value))
    if all(isinstance(element, str | bytes) for element in value):
        return array_value(key, GGUFValueType.STRING, len(value), b"".join(map(string, value)))
    if all(isinstance(element, float) for element in value):
        return array_value(key, GGUFValueType.FLOAT32, len(value), struct.pack(f"<{len(value)}f", *value))
    return array_value(key, GGUFValueType.INT32, len(value), struct.pack(f"<{len(value)}i", *value))


def random_text(rng: random.Random, max_length: int = 12) -> str:
    """Text of any Unicode characters, half of them ASCII."""
    ranges = [(0x20, 0x7F), (0x20, 0x7F), (0x09, 0x0E), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(max_length)))
