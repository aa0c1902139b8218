"""SentencePiece's map of characters: what it replaces, and maps that are damaged."""

from __future__ import annotations

import random
import struct

import pytest

from service_common.errors import ModelFileError
from tests.tokenizer_service.character_map_builder import character_map
from tests.tokenizer_service.vocabulary_builder import reader
from tokenizer_service.character_map import CharacterMap

_KEY = "tokenizer.ggml.precompiled_charsmap"
_ALPHABET = "ab\u0301\u0308éﬁ\U0001d400\U0001d401z"


def _from_bytes(data: bytes) -> CharacterMap:
    return CharacterMap.from_gguf(reader({_KEY: data}))


def _replaced(text: str, replacements: dict[str, str]) -> str:
    """By definition: the longest prefix of what is left, again and again."""
    result = ""
    while text:
        length = max((len(prefix) for prefix in replacements if text.startswith(prefix)), default=0)
        result += replacements[text[:length]] if length else text[0]
        text = text[length or 1 :]
    return result


def test_the_longest_prefix_is_replaced() -> None:
    """For random maps and texts the result is that of the definition, characters beyond U+FFFF included."""
    rng = random.Random(1)
    for _ in range(200):
        prefixes = ("".join(rng.choices(_ALPHABET, k=rng.choice((1, 1, 2, 3)))) for _ in range(rng.randrange(1, 12)))
        replacements = {prefix: "".join(rng.choices("xyé", k=rng.randrange(3))) for prefix in prefixes}
        characters = _from_bytes(character_map(replacements))
        for _ in range(20):
            text = "".join(rng.choices(_ALPHABET, k=rng.randrange(10)))
            assert characters.apply(text) == _replaced(text, replacements)


def test_without_a_map_nothing_is_replaced() -> None:
    """A file without the key leaves texts as they are."""
    assert CharacterMap.from_gguf(reader({})).apply("ﬁa\u0301") == "ﬁa\u0301"


def _map(units: list[int], replacements: bytes) -> bytes:
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + replacements


_GOOD = character_map({"a": "b"})
_CHAIN = [1 << 10, *((index ^ 1 ^ (index + 1)) << 10 | 0 for index in range(1, 4))]


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"\x01", "the trie of 1 bytes must be units of 4 bytes"),
        (struct.pack("<I", 0) + b"\0", "the trie of 0 bytes"),
        (struct.pack("<I", 6) + bytes(16), "the trie of 6 bytes"),
        (struct.pack("<I", 2**32 - 4) + bytes(64), "the trie of 4294967292 bytes .*, and replacements must follow"),
        (_GOOD[: 4 + 256 * 4], "the trie of 1024 bytes .*, and replacements must follow"),
        (_GOOD[:-1], "the one at 0 must end within"),
        (_map([1 << 10, 0, 0, 1 << 20 | 1 << 8 | 2], b"\0"), "its unit 3 tells of unit 1027"),
        (_map([1 << 10, 0, 1 << 31 | 9, 1 << 10 | 1 << 8 | 2], b"x\0"), "the one at 9 must end within"),
        (_map([1 << 10, 0, 1 << 31, 1 << 10 | 1 << 8 | 2], b"\xff\0"), "must be UTF-8"),
        (character_map({"a": "b"}).replace(b"b\0", b"b" * 2000 + b"\0"), "must end within 1024"),
        (_map([1 << 10, 0, 0, 2 << 10 | 2], b"\0"), "at most 256 bytes deep"),
    ],
)
def test_damaged_maps_are_refused(data: bytes, limit: str) -> None:
    """A map whose trie or replacements do not fit its bytes, or that has no end, is an error that says so."""
    with pytest.raises(ModelFileError, match=rf"tiny.gguf: {_KEY} is an array of {len(data)} bytes; .*{limit}"):
        _from_bytes(data)


def test_a_map_of_other_numbers_is_refused() -> None:
    """The map is bytes, signed or not."""
    with pytest.raises(ModelFileError, match="must be an array of bytes"):
        CharacterMap.from_gguf(reader({_KEY: [4, 300]}))
    signed = [byte - 256 if byte > 127 else byte for byte in _GOOD]
    assert CharacterMap.from_gguf(reader({_KEY: signed})).apply("aa") == "bb"


def test_random_bytes_are_refused_or_read() -> None:
    """Any bytes give an error or a map, in little time."""
    rng, refusals = random.Random(2), list[str]()
    for _ in range(500):
        size = 4 * rng.randrange(1, 300)
        units = [
            rng.choice((rng.getrandbits(32), rng.randrange(1 << 18), 1 << 10 | rng.randrange(256)))
            for _ in range(size // 4)
        ]
        try:
            _from_bytes(_map(units, rng.randbytes(rng.randrange(1, 50)))).apply("abc" * 50)
        except ModelFileError as error:
            refusals.append(str(error))
    assert 20 < len(refusals) < 500
    assert all(_KEY in refusal for refusal in refusals)
