"""Drafts are as long as they pay, and no longer."""

from __future__ import annotations

import random

import pytest

from engine_service.scheduling.draft_length import DraftLength, best_length


def lengths(acceptance: float, num_steps: int, num_decodes: int = 1, max_tokens: int = 16) -> list[int]:
    """The limits of so many steps, where each token of a draft is accepted with this chance."""
    rng = random.Random(1)
    length = DraftLength(max_tokens)
    limits = []
    for _ in range(num_steps):
        limit = length.limit(num_decodes)
        limits.append(limit)
        if limit:
            num_accepted = next((index for index in range(limit) if rng.random() >= acceptance), limit)
            length.observe(limit, num_accepted)
    return limits


def test_drafts_that_are_accepted_grow() -> None:
    """Within a few steps to the most rows that are computed together, and they stay there."""
    assert set(lengths(1.0, 100)[5:]) == {15}
    assert max(lengths(1.0, 100, max_tokens=2)) == 2


def test_drafts_that_are_refused_cease_but_for_rare_probes() -> None:
    """At no acceptance some steps take a tenth longer at first, and then one in 33: far below 5 %."""
    limits = lengths(0.0, 1000)
    assert limits[:16] == [7, *[3] * 14, 0]
    assert set(limits[16:]) == {0, 1}
    assert sum(limits[20:]) <= 1000 / 32


def test_drafts_that_are_half_accepted_stay_short() -> None:
    """At one in two a draft of three tokens brings most: four rows cost as much as two. After some luck, of seven."""
    limits = lengths(0.5, 1000)[20:]
    assert limits.count(3) > 0.8 * len(limits)
    assert set(limits) <= {3, 7}


@pytest.mark.parametrize(("acceptance", "drafts"), [(0.5, False), (1.0, True)])
def test_a_full_batch_has_drafts_only_where_nearly_all_are_accepted(acceptance: float, drafts: bool) -> None:
    """With many sequences a token costs little more than a row: a guess must be nearly certain."""
    limits = lengths(acceptance, 1000, num_decodes=32)[500:]
    assert (sum(limits) > len(limits)) == drafts


def test_drafts_come_back_when_the_text_begins_to_repeat() -> None:
    """A few accepted probes outweigh hundreds of refused ones."""
    length = DraftLength(16)
    for _ in range(500):
        if limit := length.limit(1):
            length.observe(limit, 0)
    limits = []
    for _ in range(150):
        limits.append(length.limit(1))
        if limits[-1]:
            length.observe(limits[-1], limits[-1])
    assert limits[-1] == 15


@pytest.mark.parametrize(("num_decodes", "chance", "length"), [(1, 0.05, 0), (1, 0.3, 3), (1, 0.9, 7), (1, 1.0, 15)])
def test_the_best_length_follows_from_chance_and_cost(num_decodes: int, chance: float, length: int) -> None:
    """Rows come by fours: a draft fills them, or is not made."""
    assert best_length(16, num_decodes, chance) == length


def test_a_probe_waits_until_there_is_something_to_try() -> None:
    """A limit that no draft has used stays."""
    length = DraftLength(4)
    while length.limit(1):
        length.observe(1, 0)
    limits = [length.limit(1) for _ in range(60)]
    assert limits[:20] == [0] * 20
    assert limits[-20:] == [1] * 20
