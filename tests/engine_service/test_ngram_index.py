"""What followed the last tokens the time before."""

from __future__ import annotations

import random

import pytest

from engine_service.scheduling.ngram_index import NgramIndex


def index_of(token_ids: list[int], ngram_size: int = 3) -> NgramIndex:
    """An index of tokens that came in two parts."""
    index = NgramIndex(ngram_size)
    index.extend(token_ids[: len(token_ids) // 2])
    index.extend(token_ids[len(token_ids) // 2 :])
    return index


def continuation_by_search(token_ids: list[int], ngram_size: int, max_tokens: int) -> tuple[int, ...]:
    """The same by comparing every place with the end."""
    last = len(token_ids)
    for length in range(ngram_size, min(2, ngram_size) - 1, -1):
        for stop in range(last - 1, length - 1, -1):
            if token_ids[stop - length : stop] == token_ids[last - length :]:
                return tuple(token_ids[stop + offset % (last - stop)] for offset in range(max_tokens))
    return ()


def test_what_followed_the_last_tokens_is_the_draft() -> None:
    """A run that was seen before is continued as it was, not beyond what is asked for."""
    index = index_of([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    assert index.continuation(2) == (4, 5)
    assert index.continuation(5) == (4, 5, 6, 9, 1)


def test_a_longer_match_goes_before_a_later_one() -> None:
    """Three equal tokens say more than two that are nearer."""
    assert index_of([1, 2, 3, 4, 7, 2, 3, 5, 1, 2, 3]).continuation(1) == (4,)
    assert index_of([1, 2, 3, 4, 7, 2, 3, 5, 1, 2, 3], ngram_size=2).continuation(1) == (5,)


def test_a_loop_goes_on() -> None:
    """Where the run before overlaps what it is compared with, what follows repeats."""
    assert index_of([8, 1, 2, 1, 2, 1, 2]).continuation(5) == (1, 2, 1, 2, 1)
    assert index_of([4, 4, 4]).continuation(3) == (4, 4, 4)


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2], [1, 2, 3, 1]])
def test_nothing_is_guessed_from_what_is_new(token_ids: list[int]) -> None:
    """No token, or one equal token alone, gives no draft."""
    assert index_of(token_ids).continuation(4) == ()


def test_one_token_is_enough_where_one_is_looked_up() -> None:
    """A request may ask for runs of one token."""
    assert index_of([5, 1, 6, 1], ngram_size=1).continuation(2) == (6, 1)


@pytest.mark.parametrize("ngram_size", [1, 2, 3, 8])
def test_the_index_finds_what_a_search_finds(ngram_size: int) -> None:
    """On random tokens of few kinds, wherever the places to compare are no more than are looked at."""
    rng = random.Random(ngram_size)
    for _ in range(200):
        token_ids = [rng.randrange(4) for _ in range(rng.randrange(16))]
        expected = continuation_by_search(token_ids, ngram_size, 6)
        assert index_of(token_ids, ngram_size).continuation(6) == expected, token_ids
