"""Sequences and their states."""

from __future__ import annotations

from itertools import product

import pytest

from engine_service.scheduling.sequence import (
    TRANSITIONS,
    IllegalTransitionError,
    Request,
    Sequence,
    SequenceId,
    SequenceState,
)
from service_common.errors import InvalidArgumentError
from tests.engine_service.scheduler_world import make_request


def make_sequence(request: Request | None = None) -> Sequence:
    """A sequence that has just been made."""
    request = request or make_request(3)
    return Sequence(
        request=request, choice=1, rank=(0.0, request.id, 1), max_tokens=8, end_token_ids=frozenset({2}), credit=8
    )


def test_a_new_sequence_is_queued_and_holds_nothing() -> None:
    """A new sequence is QUEUED, knows its prompt, and has nothing computed and no blocks."""
    sequence = make_sequence()
    assert sequence.id == SequenceId(3, 1)
    assert sequence.state is SequenceState.QUEUED
    assert (sequence.num_tokens, sequence.num_computed, len(sequence.block_table)) == (4, 0, 0)


@pytest.mark.parametrize(("old", "new"), list(product(SequenceState, SequenceState)))
def test_only_the_transitions_of_the_table_are_legal(old: SequenceState, new: SequenceState) -> None:
    """Every pair of states is an arrow of the table, or an error that names both and changes nothing (ISSUE-5)."""
    sequence = make_sequence()
    sequence.state = old
    if new in TRANSITIONS[old]:
        sequence.transition(new)
        assert sequence.state is new
    else:
        with pytest.raises(IllegalTransitionError, match=f"sequence 3/1 cannot go from {old.name} to {new.name}"):
            sequence.transition(new)
        assert sequence.state is old


def test_every_state_can_finish_and_finished_is_final() -> None:
    """FINISHED is reached from everywhere and left for nowhere (ISSUE-5)."""
    live = set(SequenceState) - {SequenceState.FINISHED}
    assert all(SequenceState.FINISHED in TRANSITIONS[state] for state in live)
    assert TRANSITIONS[SequenceState.FINISHED] == frozenset()
    assert set(TRANSITIONS) == set(SequenceState)


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (0, 7), (2, 6), (4, 7), (6, 7), (5, 5), (0, 0)])
def test_token_ids_runs_over_prompt_and_generated_tokens(start: int, stop: int) -> None:
    """token_ids is a slice of prompt + generated, wherever it starts and ends (MODEL-2)."""
    sequence = make_sequence()
    sequence.generated_ids += [30, 31, 32]
    known = (*sequence.request.prompt_ids, 30, 31, 32)
    assert sequence.token_ids(start, stop) == known[start:stop]


def test_the_token_count_is_the_length_of_the_token_lists() -> None:
    """The number of known tokens follows the lists; there is no second count to disagree (KV-5)."""
    sequence = make_sequence()
    for count in range(1, 5):
        sequence.generated_ids.append(count)
        assert sequence.num_tokens == len(sequence.token_ids(0, sequence.num_tokens)) == 4 + count
        assert sequence.num_generated == count


def test_an_end_token_counts_only_from_min_tokens_on() -> None:
    """An end token sampled below min_tokens does not end the sequence; the next one does."""
    sequence = make_sequence(make_request(3, min_tokens=1))
    assert not sequence.ends_with(2)
    sequence.generated_ids.append(2)
    assert sequence.ends_with(2)
    assert not sequence.ends_with(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_len": 0}, "token_ids is empty; must hold at least one token"),
        ({"num_choices": 0}, r"params\.n is 0; must be between 1 and 16"),
        ({"num_choices": 17}, r"params\.n is 17; must be between 1 and 16"),
        ({"priority": 101}, r"params\.priority is 101; must be between -100 and 100"),
        ({"priority": -101}, r"params\.priority is -101"),
        ({"credit": -1}, r"params\.initial_credit is -1; must not be negative"),
    ],
)
def test_a_request_out_of_range_is_refused_with_field_value_and_limit(changes: dict[str, int], message: str) -> None:
    """A request checks its own ranges; the error names field, value and limit (MODEL-13)."""
    with pytest.raises(InvalidArgumentError, match=message):
        make_request(1, **changes)  # type: ignore[arg-type]  # a dict cannot tell which argument takes what
