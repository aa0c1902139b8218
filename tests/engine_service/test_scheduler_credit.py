"""Credits (DESIGN D3): who runs, who is paused, who is given up."""

from __future__ import annotations

import pytest

from engine_service.scheduling.messages import FinishedEvent, TokenEvent
from engine_service.scheduling.sequence import FinishReason, SequenceId, SequenceState
from service_common.errors import InvalidArgumentError, ResourceExhaustedError
from tests.engine_service.scheduler_world import World, chunks_of, make_request, make_world


def state_of(world: World, request_id: int) -> SequenceState:
    """The state of a live request."""
    return next(info.state for info in world.scheduler.requests() if info.request_id == request_id)


def test_a_request_without_initial_credit_field_needs_no_grant() -> None:
    """With no initial credit given, max_tokens are allowed, so a naive client never stalls."""
    world = make_world()
    world.add(make_request(1, max_tokens=30))
    world.run_until_idle()
    assert world.end_of(1).reason is FinishReason.LENGTH


def test_credit_used_up_pauses_and_keeps_the_blocks() -> None:
    """A request generates exactly its credit, then is PAUSED with its KV and takes part in no step."""
    world = make_world()
    world.add(make_request(1, credit=3))
    world.run_until_idle()
    assert len(world.choices[SequenceId(1, 0)].ids) == 3
    assert state_of(world, 1) is SequenceState.PAUSED
    assert world.blocks.num_used_blocks == 2
    assert world.schedule() is None
    assert world.scheduler.stats().num_requests_paused == 1


def test_a_grant_resumes_where_the_request_stopped() -> None:
    """After a grant the next step computes the one token that is missing, nothing again (MODEL-2)."""
    world = make_world()
    world.add(make_request(1, credit=3))
    world.run_until_idle()
    world.grant(1, 2)
    assert state_of(world, 1) is SequenceState.DECODE
    step = world.schedule()
    assert chunks_of(step) == [(1, 6, 1, True)]
    assert step is not None
    world.update(step)
    world.run_until_idle()
    assert len(world.choices[SequenceId(1, 0)].ids) == 5
    world.finish()


def test_grants_add_up_and_cannot_overflow() -> None:
    """Grants before, while and after running add up, at any size."""
    world = make_world()
    world.add(make_request(1, max_tokens=20, credit=1))
    world.grant(1, 2)
    world.step()
    world.grant(1, 3)
    world.run_until_idle()
    assert len(world.choices[SequenceId(1, 0)].ids) == 6
    world.grant(1, 2**63)
    world.grant(1, 2**63)
    world.run_until_idle()
    assert world.end_of(1).reason is FinishReason.LENGTH
    world.check_empty()


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_grant_must_be_positive(tokens: int) -> None:
    """A credit below 1 is refused with its value."""
    world = make_world()
    world.add(make_request(1))
    with pytest.raises(InvalidArgumentError, match=rf"credit\.tokens is {tokens}; must be at least 1"):
        world.scheduler.grant(1, tokens)


def test_without_credit_a_request_stays_queued_and_holds_nobody_up() -> None:
    """A request that starts without credit takes part in no step and is passed by; a grant lets it in."""
    world = make_world(max_num_seqs=1)
    world.add(make_request(1, credit=0))
    world.add(make_request(2))
    world.run_until_idle()
    assert world.end_of(2).reason is FinishReason.LENGTH
    assert state_of(world, 1) is SequenceState.QUEUED
    world.grant(1, 8)
    world.run_until_idle()
    world.check_empty()


def test_the_end_needs_no_credit() -> None:
    """The last token allowed by max_tokens ends the request at once, though its credit is used up with it."""
    world = make_world()
    world.add(make_request(1, max_tokens=3, credit=3))
    world.run_until_idle()
    assert world.end_of(1).reason is FinishReason.LENGTH
    world.check_empty()


def test_each_choice_has_the_whole_credit() -> None:
    """Credit counts per choice: a grant lets every live choice go on."""
    world = make_world()
    world.add(make_request(1, num_choices=2, credit=2))
    world.run_until_idle()
    world.scheduler.stop(1, 0, 2)
    world.grant(1, 1)
    world.run_until_idle()
    assert [len(world.choices[SequenceId(1, choice)].ids) for choice in (0, 1)] == [2, 3]
    world.finish()


@pytest.mark.parametrize("credit", [0, 2])
def test_without_credit_for_too_long_a_request_ends(credit: int) -> None:
    """After pause_timeout_seconds without credit, queued or paused, a request ends with RESOURCE_EXHAUSTED."""
    world = make_world(pause_timeout_seconds=30.0)
    world.add(make_request(1, credit=credit))
    world.run_until_idle()
    assert world.scheduler.next_deadline() == 130.0
    world.clock.now = 129.0
    assert world.step() == []
    world.clock.now = 130.0
    (end,) = world.step()
    assert isinstance(end, FinishedEvent)
    assert isinstance(end.error, ResourceExhaustedError)
    assert str(end.error) == "no credit for 30 s; the limit is 30 s"
    world.check_empty()


def test_each_pause_has_its_own_time_limit() -> None:
    """A grant in time starts the clock anew at the next pause; a running request is never timed out."""
    world = make_world(pause_timeout_seconds=30.0)
    world.add(make_request(1, max_tokens=20, credit=2))
    world.run_until_idle()
    world.clock.now = 125.0
    world.grant(1, 1)
    assert world.scheduler.next_deadline() is None
    world.clock.now = 200.0
    (token,) = world.step()
    assert isinstance(token, TokenEvent)
    assert world.scheduler.next_deadline() == 230.0


@pytest.mark.parametrize("act", ["cancel", "deadline", "stop"])
def test_a_paused_request_can_end_like_any_other(act: str) -> None:
    """Cancel, deadline and stop end a paused request and free its blocks."""
    world = make_world()
    world.add(make_request(1, credit=2, deadline=150.0))
    world.run_until_idle()
    if act == "cancel":
        world.scheduler.cancel(1)
    elif act == "stop":
        world.scheduler.stop(1, 0, 2)
    else:
        world.clock.now = 150.0
    world.step()
    assert world.end_of(1).reason.value == {"cancel": "cancelled"}.get(act, act)
    world.check_empty()
