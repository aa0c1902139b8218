"""Stop strings in streams: against a definition by brute force, and what is delivered when one is found."""

from __future__ import annotations

import codecs
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from clforge.v1.generation_pb2 import SECTION_UNSPECIFIED
from service_common.errors import InvalidArgumentError
from tests.tokenizer_service.vocabulary_builder import bpe_keys, spm_keys, vocabulary
from tokenizer_service.stop_strings import StopStrings
from tokenizer_service.text_stream import Piece, TextStream
from tokenizer_service.vocabulary import Vocabulary


class _Found(NamedTuple):
    start: int
    end: int


def first_stop(text: str, stops: Sequence[str]) -> _Found | None:
    """By definition: the match that ends first, of those that end together the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return _Found(min(starts), end)
    return None


def _longest_beginning(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max((n for n in range(len(text) + 1) for stop in stops if stop.startswith(text[len(text) - n :])), default=0)


def _random_stops(rng: random.Random, alphabet: str) -> list[str]:
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 4))]


def _pieces(rng: random.Random, text: str) -> list[str]:
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("include_stop", [False, True])
def test_matches_the_definition_however_text_is_cut(include_stop: bool) -> None:
    """On random texts and stop strings the result is the definition's, and no more is held back than must be."""
    rng = random.Random(1)
    for _ in range(10_000):
        stops = _random_stops(rng, "ab")
        text = "".join(rng.choices("abc", weights=(5, 5, 1), k=rng.randrange(20)))
        found = first_stop(text, stops)
        matcher, delivered, seen, stop = StopStrings(stops, include_stop=include_stop), "", "", None
        for piece in _pieces(rng, text):
            scan = matcher.push(piece)
            delivered, seen, stop = delivered + scan.text, seen + piece, scan.stop
            if stop is not None:
                break
            assert len(matcher.held) == _longest_beginning(seen, stops)
        if found is None:
            assert (stop, delivered + matcher.flush()) == (None, text)
        else:
            assert stop == text[found.start : found.end]
            assert delivered == text[: found.end if include_stop else found.start]


def test_the_match_that_is_complete_first_wins() -> None:
    """A short stop string within a longer one ends the text at once; of two that end together the longest is told."""
    assert StopStrings(["abcd", "bc"]).push("xabcd") == ("xa", "bc")
    assert StopStrings(["bc", "abc"]).push("xabc") == ("x", "abc")


def test_a_beginning_that_fails_is_let_through() -> None:
    """Held text is delivered as soon as it cannot become a stop string."""
    matcher = StopStrings(["</end>"])
    assert matcher.push("a</e") == ("a", None)
    assert matcher.held == "</e"
    assert matcher.push("x<") == ("</ex", None)
    assert matcher.flush() == "<"


def test_an_empty_stop_string_is_refused() -> None:
    """An empty stop string is the caller's mistake."""
    with pytest.raises(InvalidArgumentError, match="stop is ; a stop string must have at least one character"):
        StopStrings(["a", ""])


def test_long_repetitive_stop_strings_take_constant_time_per_character() -> None:
    """The worst stop strings that the protocol allows do not slow down the stream beyond a constant."""
    stops = ["a" * 1000 + chr(ord("b") + n) for n in range(16)]
    matcher = StopStrings(stops)
    started = time.monotonic()
    for _ in range(5000):
        assert matcher.push("aaaa").stop is None
    assert time.monotonic() - started < 5
    assert matcher.held == "a" * 1000


def _run(stream: TextStream[int], ids: Sequence[int]) -> list[Piece[int]]:
    """The pieces of a stream whose payloads are the indices of its tokens."""
    pieces: list[Piece[int]] = []
    for index, token_id in enumerate(ids):
        pieces += stream.push(token_id, index)
        if pieces and pieces[-1].stop is not None:
            assert stream.held_tokens == 0
            return pieces
        assert stream.held_tokens == index + 1 - sum(len(piece.payloads) for piece in pieces)
    return pieces + stream.finish()


def _parts(pieces: Sequence[Piece[Any]]) -> list[tuple[str, list[Any], str | None]]:
    """Pieces of a stream whose sections are not told apart."""
    assert all(piece.section == SECTION_UNSPECIFIED for piece in pieces)
    return [(piece.text, piece.payloads, piece.stop) for piece in pieces]


class _Certain(NamedTuple):
    """The text that some tokens are certain to give, and whether their bytes end within a character."""

    text: str
    is_open: bool


def _certain(tokens: Vocabulary, ids: Sequence[int]) -> _Certain:
    raw = b"".join(tokens.token_bytes(token_id, skip_special=True) for token_id in ids)
    text, num_used = codecs.utf_8_decode(raw, "replace", False)
    return _Certain(text, num_used < len(raw))


def _delivered_by_definition(tokens: Vocabulary, ids: Sequence[int], found: _Found, num_chars: int) -> int:
    """Of the tokens up to the one that completes the stop string, those of which a character is among the first
    `num_chars`, a character being of the token that completes it; one without text goes with what precedes it."""
    before, delivered = _certain(tokens, []), 0
    for index in range(len(ids)):
        after = _certain(tokens, ids[: index + 1])
        gives_text = len(after.text) > len(before.text) or after.is_open
        if num_chars < len(before.text) + gives_text or len(before.text) >= found.end:
            break
        before, delivered = after, delivered + 1
    return delivered


@pytest.mark.parametrize("keys", [spm_keys(), bpe_keys()], ids=["spm", "bpe"])
def test_without_stops_every_token_is_accounted_for_once(keys: dict[str, object]) -> None:
    """The pieces' texts are the whole text and their payloads all tokens in order, for random ids. (CLI-2)"""
    tokens, rng = vocabulary(keys), random.Random(2)
    for _ in range(3000):
        ids = [rng.randrange(tokens.size) for _ in range(rng.randrange(12))]
        pieces = _run(TextStream(tokens), ids)
        assert "".join(piece.text for piece in pieces) == tokens.decode_continuation(ids)
        assert [index for piece in pieces for index in piece.payloads] == [*range(len(ids))]


@pytest.mark.parametrize("include_stop", [False, True])
@pytest.mark.parametrize("keys", [spm_keys(), bpe_keys()], ids=["spm", "bpe"])
def test_a_stop_counts_the_tokens_of_the_delivered_text(keys: dict[str, object], include_stop: bool) -> None:
    """With a stop string the payloads are of the tokens whose text is at least partly delivered, for random ids."""
    tokens, rng = vocabulary(keys), random.Random(3)
    num_stopped = 0
    for _ in range(3000):
        ids = [rng.randrange(tokens.size) for _ in range(rng.randrange(1, 12))]
        text = tokens.decode_continuation(ids)
        start = rng.randrange(len(text) + 1)
        stops = [text[start : start + rng.randint(1, 3)] or "?", *_random_stops(rng, "the ")]
        found = first_stop(text, stops)
        pieces = _run(TextStream(tokens, stops, include_stop=include_stop), ids)
        delivered = "".join(piece.text for piece in pieces)
        payloads = [index for piece in pieces for index in piece.payloads]
        if found is None:
            assert (delivered, payloads) == (text, [*range(len(ids))])
            assert all(piece.stop is None for piece in pieces)
            continue
        num_stopped += 1
        assert pieces[-1].stop == text[found.start : found.end]
        assert delivered == text[: found.end if include_stop else found.start]
        assert payloads == [*range(_delivered_by_definition(tokens, ids, found, len(delivered)))]
    assert num_stopped > 1000


def test_a_stop_inside_a_token_delivers_the_tokens_first_part() -> None:
    """A token whose text begins before the stop string counts as delivered; those wholly inside it do not."""
    tokens = vocabulary(bpe_keys())
    ids = tokens.encode("hello<tool>hello")
    pieces = _run(TextStream(tokens, ["lo<tool>"]), ids)
    assert _parts(pieces) == [("hel", [0], None), ("", [], "lo<tool>")]


def test_held_tokens_are_released_together_when_the_stop_fails() -> None:
    """Tokens held for a stop string that does not come are all accounted for by the piece that delivers them."""
    tokens = vocabulary(bpe_keys())
    stream = TextStream[str](tokens, ["abc"])
    ids = tokens.encode("abx")
    steps = [_parts(stream.push(token_id, name)) for token_id, name in zip(ids, "abx", strict=True)]
    assert steps == [[], [], [("abx", ["a", "b", "x"], None)]]
    assert stream.held_tokens == 0


def test_the_end_of_a_stream_delivers_what_was_held() -> None:
    """finish gives text held for a stop string and the replacement of a character that was never completed."""
    tokens = vocabulary(spm_keys())
    stream = TextStream[int](tokens, ["ab"])
    stream.push(tokens.token_id("a") or 0, 0)
    stream.push(3 + 0xE2, 1)
    assert stream.held_tokens == 2
    assert _parts(stream.finish()) == [("a\ufffd", [0, 1], None)]
