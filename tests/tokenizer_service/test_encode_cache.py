"""The encode cache: exactly what encoding anew gives, in bounded memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from service_common.gguf_reader import GGUFReader
from tests.tokenizer_service.vocabulary_builder import bpe_keys, random_text, reader, spm_keys
from tokenizer_service.encode_cache import MAX_SHARE, MIN_CHARACTERS, EncodeCache
from tokenizer_service.vocabulary import Vocabulary

LONG = "a" * MIN_CHARACTERS


class Encoding:
    """An encode function that counts its calls."""

    def __init__(self, first_id: int = 0) -> None:
        self.first_id = first_id
        self.num_calls = 0

    def __call__(self, text: str) -> list[int]:
        self.num_calls += 1
        return [self.first_id + ord(character) for character in text]


class Colliding(str):
    """Texts that all have one hash."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7

    __eq__ = str.__eq__


def test_a_long_text_is_encoded_once() -> None:
    """The second time its ids come from the cache, as a list that the caller may change."""
    cache, encode = EncodeCache(1 << 20), Encoding()
    cached = cache.wrap(encode)
    first = cached(LONG)
    cached(LONG).clear()
    assert cached(LONG) == first == Encoding()(LONG)
    assert encode.num_calls == 1
    assert (cache.num_queried_characters, cache.num_hit_characters) == (3 * len(LONG), 2 * len(LONG))


def test_texts_of_one_hash_are_told_apart() -> None:
    """The comparison decides, not the hash."""
    cached = EncodeCache(1 << 20).wrap(Encoding())
    texts = [Colliding(LONG + ending) for ending in ("b", "c")]
    assert hash(texts[0]) == hash(texts[1])
    for text in texts * 2:
        assert cached(text) == Encoding()(text)


def test_a_text_that_begins_like_another_is_encoded_anew() -> None:
    """Nothing of a cached text is reused for a longer one."""
    encode = Encoding()
    cached = EncodeCache(1 << 20).wrap(encode)
    for length in range(10):
        assert cached(LONG + "b" * length) == Encoding()(LONG + "b" * length)
    assert encode.num_calls == 10


def test_vocabularies_share_a_cache_but_no_ids() -> None:
    """The same text of another encoding is another text."""
    cache = EncodeCache(1 << 20)
    one, other = cache.wrap(Encoding()), cache.wrap(Encoding(1000))
    for _ in range(2):
        assert one(LONG) == Encoding()(LONG)
        assert other(LONG) == Encoding(1000)(LONG)


def test_short_and_enormous_texts_are_not_kept() -> None:
    """Neither may push out what is worth keeping; a cache of 0 bytes keeps nothing."""
    cache, encode = EncodeCache(100_000), Encoding()
    for text in ("a" * (MIN_CHARACTERS - 1), "a" * (100_000 // MAX_SHARE)):
        cache.wrap(encode)(text)
    assert (cache.num_bytes, encode.num_calls) == (0, 2)
    none = EncodeCache(0)
    none.wrap(encode)(LONG)
    assert none.num_bytes == 0


def test_the_least_recently_used_goes_first() -> None:
    """A text that is asked for again and again stays, however many others pass through."""
    cache, encode = EncodeCache(20_000), Encoding()
    cached = cache.wrap(encode)
    for index in range(100):
        cached(LONG)
        cached(f"{index:<{MIN_CHARACTERS}}")
    assert encode.num_calls == 101
    cached(f"{0:<{MIN_CHARACTERS}}")
    assert encode.num_calls == 102


def test_memory_stays_within_its_bound_and_ids_exact_whatever_is_asked() -> None:
    """Random texts, some often and some once, by two encodings in one small cache."""
    rng, cache = random.Random(1), EncodeCache(50_000)
    encodings = [(cache.wrap(Encoding(first)), Encoding(first)) for first in (0, 5)]
    often = [random_text(rng, 600) * 3 for _ in range(8)]
    for _ in range(1500):
        cached, plain = rng.choice(encodings)
        text = rng.choice(often) if rng.random() < 0.6 else random_text(rng, 1500)
        assert cached(text) == plain(text)
        assert 0 <= cache.num_bytes <= 50_000
    assert 0 < cache.num_hit_characters < cache.num_queried_characters


@pytest.mark.parametrize("keys", [spm_keys(), bpe_keys()], ids=["spm", "bpe"])
def test_vocabulary_with_a_cache_gives_the_ids_of_one_without(keys: dict[str, object]) -> None:
    """For texts with and without special tokens, looked for or not, the first and the second time."""
    rng, file = random.Random(2), reader(keys)
    plain, cached = Vocabulary.from_gguf(file), Vocabulary.from_gguf(file, cache=EncodeCache(1 << 20))
    specials = [plain.token_spelling(token_id) for token_id in range(plain.size) if plain.is_special(token_id)]
    for _ in range(20):
        text = rng.choice(specials).join(random_text(rng, 40) * 20 for _ in range(3))
        for parse_special in (False, True, False, True):
            expected = plain.encode(text, parse_special=parse_special)
            assert cached.encode(text, parse_special=parse_special) == expected
        assert cached.encode_chat(text, {}) == plain.encode_chat(text, {}) == cached.encode_chat(text, {})


def test_cache_changes_no_id_of_real_vocabularies(shared_data: Path) -> None:
    """The whole test text of each vocabulary, made long enough to be cached, gives the same ids from the cache."""
    for path in sorted((shared_data / "vocab").glob("*.gguf")):
        with GGUFReader(path) as file:
            plain = Vocabulary.from_gguf(file)
            cache = EncodeCache(16 << 20)
            cached = Vocabulary.from_gguf(file, cache=cache)
        text = path.with_suffix(".gguf.inp").read_text(encoding="utf-8")
        expected = plain.encode(text)
        assert cached.encode(text) == expected
        assert cached.encode(text) == expected
        assert cache.num_hit_characters > 0, path.name
