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
_UNIGRAM_SCORES = {
    "▁": -2.0,
    **{letter: -6.0 - rank / 8 for rank, letter in enumerate("etaoinshrdlucmfwypvbgk.,1/2")},
    **{"▁the": -2.5, "he": -4.0, "▁t": -3.5, "in": -3.75, "▁a": -3.25, "er": -4.5, "▁in": -3.0, "the": -3.875},
    **{"re": -4.25, "▁her": -5.0, "▁▁": -2.25, "aa": -7.0, "aaa": -8.5},
}
_WORD_PIECES = [
    *("▁hello", "▁he", "▁h", "▁wor", "▁un", "▁a", "▁cafe", "▁中", "▁文", "▁,", "▁!", "▁[", "▁]", "▁u", "▁1"),
    *("llo", "ld", "aff", "able", "b", "c", "s", "1", "2", "ı", "▁straße", "▁в", "се"),
]
_CHARACTER_MERGES = ["h e", "l l", "he ll", "hell o", "▁ w", "▁w o", "▁ ▁", "▁▁ ▁▁", "日 本", "\n \n", "t h", "th e"]
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


def unigram_keys(**changes: Any) -> dict[str, Any]:
    """A Unigram vocabulary: <pad>, </s>, <unk>, pieces with scores, and a user-defined token."""
    tokens = ["<pad>", "</s>", "<unk>", *_UNIGRAM_SCORES, "<extra_id_0>"]
    types = [TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN]
    types += [TokenType.NORMAL] * len(_UNIGRAM_SCORES) + [TokenType.USER_DEFINED]
    keys = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, *_UNIGRAM_SCORES.values(), 0.0],
        "tokenizer.ggml.token_type": [int(token_type) for token_type in types],
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }
    return _changed(keys, changes)


def word_piece_keys(**changes: Any) -> dict[str, Any]:
    """A WordPiece vocabulary: BERT's special tokens with ids of their own, words and what goes on in words."""
    special = {
        "[PAD]": TokenType.CONTROL,
        "[UNK]": TokenType.UNKNOWN,
        "[CLS]": TokenType.CONTROL,
        "[SEP]": TokenType.CONTROL,
    }
    tokens = [*special, *_WORD_PIECES]
    keys = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*map(int, special.values())] + [int(TokenType.NORMAL)] * len(_WORD_PIECES),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    }
    return _changed(keys, changes)


def character_bpe_keys(**changes: Any) -> dict[str, Any]:
    """A BPE vocabulary whose letters are characters, as Gemma 4's: byte tokens, letters, merges, newlines."""
    letters = ["▁", "\n", *"abcdehlorwt日本"]
    merged = [merge.replace(" ", "") for merge in _CHARACTER_MERGES]
    normal = [*letters, *merged, "\n\n\n"]
    tokens = ["<pad>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *normal]
    types = [TokenType.CONTROL] * 3 + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(normal)
    keys = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(token_type) for token_type in types],
        "tokenizer.ggml.merges": list(_CHARACTER_MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return _changed(keys, changes)


def rwkv_keys(**changes: Any) -> dict[str, Any]:
    """A vocabulary of RWKV's kind: every byte, some words and a token that is not UTF-8."""
    plain = [chr(byte) if 0x20 <= byte < 0x7F and chr(byte) not in "\\'" else f"\\x{byte:02x}" for byte in range(256)]
    plain[0x0A], plain[0x5C], plain[0x27] = "\\n", "\\\\", "\\'"
    tokens = ["<s>", *plain, "the", " the", "then", "\\n\\n", "\\xe6\\x97", "日本", "don\\'t"]
    keys = {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(TokenType.CONTROL)] + [int(TokenType.NORMAL)] * (len(tokens) - 1),
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
    if isinstance(value, bytes):
        return array_value(key, GGUFValueType.UINT8, len(value), value)
    if all(isinstance(element, str | bytes) for element in value):
        return array_value(key, GGUFValueType.STRING, len(value), b"".join(map(string, value)))
    if all(isinstance(element, float) for element in value):
        return array_value(key, GGUFValueType.FLOAT32, len(value), struct.pack(f"<{len(value)}f", *value))
    return array_value(key, GGUFValueType.INT32, len(value), struct.pack(f"<{len(value)}i", *value))


def random_text(rng: random.Random, max_length: int = 12) -> str:
    """Text of any Unicode characters, half of them ASCII."""
    ranges = [(0x20, 0x7F), (0x20, 0x7F), (0x09, 0x0E), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(max_length)))
