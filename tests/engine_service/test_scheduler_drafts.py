"""Drafts in the scheduler: several tokens a step, the same ones as without, within every limit.

The world's checks run along: tokens as if alone, credit never exceeded, every slot that is read as the sequence's own
tokens say, so that what a refused draft has left is never taken for K and V.
"""

from __future__ import annotations

import pytest

from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.messages import FinishedEvent, TokenEvent
from engine_service.scheduling.sequence import FinishReason
from tests.engine_service.scheduler_world import (
    CorruptedDrafts,
    World,
    chunks_of,
    ids_alone,
    make_request,
    make_world,
)


def drafting_world(one_in: int = 0, max_draft_tokens: int = 4, **options: int) -> World:
    """A world whose drafts are right but for one token in `one_in`, and by default of so many tokens."""
    drafter = Drafter(lambda sequence: CorruptedDrafts(one_in))
    return make_world(drafter=drafter, max_draft_tokens=max_draft_tokens, **options)


def test_right_drafts_bring_several_tokens_a_step() -> None:
    """The chunk holds the newest token and the draft, a row each; all of its tokens come in order, then the end."""
    world = drafting_world()
    request = make_request(1, prompt_len=4, max_tokens=11)
    world.add(request)
    world.step()
    step = world.schedule()
    assert step is not None
    assert chunks_of(step) == [(1, 4, 5, 5)]
    events = world.update(step)
    assert [event.token.token_id for event in events if isinstance(event, TokenEvent)] == [
        *ids_alone(request, 0, 6)[1:]
    ]
    assert world.run_until_idle() == 1
    assert world.end_of(1).usage.drafted_tokens == world.end_of(1).usage.accepted_tokens == 4 + 4
    world.check_empty()


def test_wrong_drafts_change_nothing_but_the_time() -> None:
    """With every guess wrong there is a token a step, as without drafts."""
    world = drafting_world(one_in=1)
    world.add(make_request(1, max_tokens=30))
    assert world.run_until_idle() == 30
    usage = world.end_of(1).usage
    assert usage.accepted_tokens == 0 < usage.drafted_tokens
    stats = world.scheduler.stats()
    assert (stats.drafted_tokens, stats.accepted_tokens) == (usage.drafted_tokens, 0)


@pytest.mark.parametrize("one_in", [0, 1, 2, 3])
def test_refused_tokens_never_enter_the_prefix_cache(one_in: int) -> None:
    """Whoever goes on from a text that was drafted finds K and V of its own tokens (D7)."""
    world = drafting_world(one_in, max_draft_tokens=7)
    first = make_request(1, prompt_len=5, max_tokens=30)
    world.add(first)
    world.run_until_idle()
    text = first.prompt_ids + ids_alone(first, 0, 30)
    world.add(make_request(2, prompt_ids=text, max_tokens=20))
    world.run_until_idle()
    assert world.end_of(2).usage.cached_tokens == len(text) - 1
    world.check_empty()


def test_a_draft_is_shorter_than_credit_and_max_tokens() -> None:
    """One token of each is for the one that is sampled after the draft; then the sequence pauses, or has ended."""
    world = drafting_world(max_draft_tokens=16)
    world.add(make_request(1, max_tokens=8, credit=4))
    world.step()
    assert chunks_of(world.schedule()) == [(1, 4, 3, 3)]
    world.update(world.scheduler._in_flight)  # type: ignore[arg-type]
    assert world.scheduler.stats().num_requests_paused == 1
    world.grant(1, 100)
    assert chunks_of(world.schedule()) == [(1, 7, 4, 4)]
    world.update(world.scheduler._in_flight)  # type: ignore[arg-type]
    assert world.end_of(1).reason is FinishReason.LENGTH


def test_a_stop_token_within_a_draft_ends_the_choice_there() -> None:
    """What was accepted behind it is dropped, and counts for nothing."""
    world = drafting_world(max_draft_tokens=16)
    request = make_request(1, max_tokens=12)
    stop_id = ids_alone(request, 0, 12)[5]
    world.add(make_request(1, max_tokens=12, stop_ids=(stop_id,)))
    world.run_until_idle()
    end = world.end_of(1)
    assert (end.reason, end.stop_token_id) == (FinishReason.STOP, stop_id)
    assert end.usage.generated_tokens == ids_alone(request, 0, 12).index(stop_id) + 1
    world.check_empty()


def test_end_tokens_are_banned_by_position_within_a_draft() -> None:
    """The rows of one step are below and above min_tokens, each for itself."""
    world = drafting_world(max_draft_tokens=16)
    for request_id in range(1, 30):
        world.add(make_request(request_id, max_tokens=9, min_tokens=4, stop_ids=(1, 2, 3, 4, 5), ignore_eos=False))
    world.run_until_idle()
    assert {end.reason for end in world.log if isinstance(end, FinishedEvent)} == {
        FinishReason.STOP,
        FinishReason.LENGTH,
    }
    world.check_empty()


def test_no_sequence_is_preempted_for_a_draft() -> None:
    """Drafts take blocks that nobody uses, and shrink where there are none."""
    world = drafting_world(num_blocks=4, block_size=4, max_draft_tokens=16)
    world.add(make_request(1, prompt_len=4, max_tokens=5, cache_salt=None))
    world.add(make_request(2, prompt_len=4, max_tokens=5, cache_salt=None))
    world.run_until_idle()
    assert world.scheduler.stats().num_preemptions == 0
    assert world.scheduler.stats().accepted_tokens == 3 + 3


def test_drafts_leave_room_for_prefill() -> None:
    """They take at most half of the tokens that decode leaves, and no more than the spare rows of logits."""
    world = drafting_world(max_draft_tokens=16, max_num_seqs=2, max_num_batched_tokens=6, num_blocks=32)
    world.add(make_request(1, prompt_len=4, max_tokens=40))
    world.step()
    world.add(make_request(2, prompt_len=20))
    assert chunks_of(world.schedule()) == [(1, 4, 3, 3), (2, 0, 3, 0)]


def test_a_request_may_turn_drafts_off_or_on() -> None:
    """Its own word goes before the configuration's."""
    world = drafting_world(max_draft_tokens=4)
    world.add(make_request(1, max_tokens=10, max_draft_tokens=0))
    world.run_until_idle()
    assert world.end_of(1).usage.drafted_tokens == 0
    world = drafting_world(max_draft_tokens=0)
    world.add(make_request(1, max_tokens=10, max_draft_tokens=2))
    world.run_until_idle()
    assert world.end_of(1).usage.drafted_tokens > 0


def test_a_repetitive_prompt_is_looked_up() -> None:
    """With no other source, drafts are what followed the last tokens before; they survive preemption."""
    world = make_world(max_draft_tokens=4, block_size=4, num_blocks=16)
    request = make_request(1, prompt_len=4, max_tokens=20)
    text = request.prompt_ids + ids_alone(request, 0, 20)
    world.add(make_request(2, prompt_ids=(*text, *text[:3]), max_tokens=10))
    world.run_until_idle()
    assert world.end_of(2).usage.drafted_tokens > 0
    world.check_empty()
