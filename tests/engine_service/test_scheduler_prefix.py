"""What requests reuse of each other's K and V: the prefix cache, and several choices of one prompt."""

from __future__ import annotations

from typing import Any

import pytest

from engine_service.scheduling.sequence import FinishReason, SequenceId, SequenceState
from service_common.errors import InternalError
from tests.engine_service.scheduler_world import World, chunks_of, make_request, make_world


def prompt(length: int, own: int = 0) -> tuple[int, ...]:
    """A prompt whose last `own` tokens are its own; all prompts begin alike."""
    return tuple(range(1, length - own + 1)) + tuple(30 + (own + index) % 9 for index in range(own))


def serve(world: World, number: int, **fields: Any) -> int:
    """Runs a request to its end; the prompt tokens that it found cached."""
    world.add(make_request(number, **fields))
    world.run_until_idle()
    return world.end_of(number).usage.cached_tokens


def test_a_prompt_that_was_served_before_is_not_computed_again() -> None:
    """All but the last token of a known prompt come from the cache, and usage says so."""
    world = make_world()
    assert serve(world, 1, prompt_ids=prompt(21)) == 0
    assert serve(world, 2, prompt_ids=prompt(21)) == 20
    assert serve(world, 3, prompt_ids=prompt(10)) == 9
    assert world.scheduler.stats().prompt_tokens == 21 + 1 + 1
    world.check_empty()


def test_a_prefix_is_shared_while_its_owner_still_runs() -> None:
    """Blocks are found as soon as they are computed, not only when their request has ended."""
    world = make_world()
    world.add(make_request(1, prompt_ids=prompt(14), max_tokens=30))
    world.step()
    world.add(make_request(2, prompt_ids=prompt(14, own=6)))
    assert chunks_of(world.schedule())[1] == (2, 8, 6, True)


def test_a_prompt_that_diverges_within_a_block_keeps_what_it_has_in_common() -> None:
    """The block is copied on write before the step, and the neighbours' tokens do not change (D7)."""
    world = make_world()
    world.add(make_request(1, prompt_ids=prompt(16), max_tokens=30))
    world.step()
    world.add(make_request(2, prompt_ids=prompt(14, own=3)))
    step = world.schedule()
    assert step is not None
    assert chunks_of(step)[1] == (2, 11, 3, True)
    (copy,) = step.block_copies
    first, second = (chunk.sequence.block_table for chunk in step.chunks)
    assert (copy.source, copy.target) == (first[2], second[2])
    world.update(step)
    world.finish()


def test_the_next_turn_of_a_conversation_computes_only_what_is_new() -> None:
    """A prompt that repeats prompt and answer of the turn before reuses both, to the last computed token."""
    world = make_world()
    serve(world, 1, prompt_ids=prompt(10), max_tokens=9)
    answer = tuple(world.choices[SequenceId(1, 0)].ids)
    assert serve(world, 2, prompt_ids=prompt(10) + answer + (7, 8)) == 10 + 8
    world.check_empty()


def test_salts_keep_tenants_apart() -> None:
    """A prompt is found only under the salt that it was served under (D7)."""
    world = make_world()
    assert serve(world, 1, prompt_ids=prompt(21), cache_salt="a") == 0
    assert serve(world, 2, prompt_ids=prompt(21), cache_salt="b") == 0
    assert serve(world, 3, prompt_ids=prompt(21), cache_salt="b") == 20


def test_opting_out_neither_reads_nor_fills_the_cache() -> None:
    """A request without salt computes everything and leaves nothing, also when it is asked twice."""
    world = make_world()
    assert serve(world, 1, prompt_ids=prompt(21), cache_salt=None) == 0
    assert serve(world, 2, prompt_ids=prompt(21)) == 0
    assert serve(world, 3, prompt_ids=prompt(21), cache_salt=None) == 0
    assert world.scheduler.stats().blocks.num_prefix_queries == 1


def test_a_preempted_request_comes_back_through_the_cache() -> None:
    """What nobody has overwritten of a preempted sequence is not computed again, output included."""
    world = make_world(num_blocks=8, context_length=32)
    world.add(make_request(1, prompt_ids=prompt(9), max_tokens=20, credit=6))
    world.run_until_idle()
    world.add(make_request(2, prompt_len=20, max_tokens=1))
    world.run_until_idle()
    assert world.scheduler.requests()[0].state is SequenceState.PREEMPTED
    world.grant(1, 14)
    ((number, start, num_tokens, _),) = chunks_of(world.schedule())
    assert (number, start + num_tokens) == (1, 15)
    assert start > 9


def test_a_large_request_evicts_what_nobody_uses() -> None:
    """The cache never keeps a request from its blocks: all but the ones in use can be had."""
    world = make_world(num_blocks=8, context_length=32)
    for number in range(1, 5):
        serve(world, number, prompt_len=7, max_tokens=1)
    assert world.scheduler.stats().blocks.num_cached_blocks == 8
    assert serve(world, 9, prompt_len=28, max_tokens=5) == 0
    assert world.scheduler.stats().blocks.num_evictions == 8
    world.check_empty()


def test_stats_count_queries_hits_and_copies() -> None:
    """Each admission asks once; the tokens that it asks for and finds, and the copies, are counted."""
    world = make_world()
    serve(world, 1, prompt_ids=prompt(21))
    serve(world, 2, prompt_ids=prompt(21))
    blocks = world.scheduler.stats().blocks
    assert (blocks.num_prefix_queries, blocks.prefix_query_tokens, blocks.prefix_hit_tokens) == (2, 42, 20)
    assert blocks.num_block_copies == 0
    serve(world, 3, prompt_ids=prompt(20))
    assert world.scheduler.stats().blocks.num_block_copies == 1


def test_a_failed_step_leaves_nothing_of_itself_in_the_cache() -> None:
    """What a step should have computed or copied is not found by anyone when it failed."""
    world = make_world()
    serve(world, 1, prompt_ids=prompt(18), max_tokens=1)
    world.add(make_request(2, prompt_ids=prompt(22, own=5)))
    step = world.schedule()
    assert step is not None
    assert step.block_copies
    world.receive(world.scheduler.fail(step, InternalError("the device failed", reason="DEVICE")))
    assert serve(world, 3, prompt_ids=prompt(22, own=5)) == 17
    world.check_empty()


@pytest.mark.parametrize("cache_salt", ["", None])
def test_several_choices_share_one_prefill(cache_salt: str | None) -> None:
    """The prompt is computed once; each further choice computes its last token again, also without the cache."""
    world = make_world()
    world.add(make_request(1, prompt_ids=prompt(18), num_choices=4, cache_salt=cache_salt))
    step = world.schedule()
    assert chunks_of(step) == [(1, 0, 18, True)]
    assert step is not None
    world.update(step)
    step = world.schedule()
    assert chunks_of(step) == [(1, 18, 1, True)] + 3 * [(1, 17, 1, True)]
    assert step is not None
    assert len(step.block_copies) == 3
    world.update(step)
    assert world.scheduler.stats().blocks.num_used_blocks == 4 + 4
    world.finish()
    assert [world.end_of(1, choice).usage.cached_tokens for choice in range(4)] == [0, 17, 17, 17]


@pytest.mark.parametrize("cache_salt", ["", None])
def test_choices_share_the_prompt_of_one_that_ends_with_its_first_token(cache_salt: str | None) -> None:
    """Where the first choice ends as soon as the prompt is computed, the others still go on from there."""
    world = make_world()
    world.add(make_request(1, prompt_ids=prompt(18), max_tokens=1, num_choices=16, cache_salt=cache_salt))
    world.run_until_idle()
    assert world.scheduler.stats().prompt_tokens == 18 + 15
    world.check_empty()


def test_while_a_prompt_is_computed_its_other_choices_hold_nobody_up() -> None:
    """Requests behind one of several choices are admitted while its first choice is in prefill."""
    world = make_world(max_num_batched_tokens=8, max_num_seqs=4, max_prefill_chunk=4)
    world.add(make_request(1, prompt_ids=prompt(20), num_choices=3))
    world.add(make_request(2, prompt_len=4))
    assert chunks_of(world.schedule()) == [(1, 0, 4, False), (2, 0, 4, True)]


@pytest.mark.parametrize("act", ["stop", "fail"])
def test_when_the_first_choice_ends_too_early_the_next_takes_over(act: str) -> None:
    """A choice that ends before the prompt is computed leaves that to the next one; each still ends once."""
    world = make_world(max_prefill_chunk=4)
    world.add(make_request(1, prompt_ids=prompt(10), num_choices=3))
    world.step()
    if act == "stop":
        world.scheduler.stop(1, 0, 0)
        world.receive(world.scheduler.take_events())
    else:
        step = world.schedule()
        assert step is not None
        world.receive(world.scheduler.fail(step, InternalError("the device failed", reason="DEVICE")))
    world.run_until_idle()
    reasons = [world.end_of(1, choice).reason for choice in range(3)]
    first = FinishReason.STOP if act == "stop" else FinishReason.ERROR
    assert reasons == [first, FinishReason.LENGTH, FinishReason.LENGTH]
    world.check_empty()


def test_choices_without_credit_wait_for_it_together() -> None:
    """With no initial credit nothing runs; a grant starts the first choice, and the others follow it."""
    world = make_world()
    world.add(make_request(1, prompt_ids=prompt(10), num_choices=3, credit=0))
    assert world.schedule() is None
    world.grant(1, 8)
    assert chunks_of(world.schedule()) == [(1, 0, 10, True)]


def test_a_choice_for_which_there_is_no_block_waits_for_its_turn() -> None:
    """In a pool for one choice the others come when blocks are free again, and nothing is lost."""
    world = make_world(num_blocks=4, context_length=16)
    world.add(make_request(1, prompt_ids=prompt(13), max_tokens=3, num_choices=3))
    world.run_until_idle()
    assert all(world.end_of(1, choice).reason is FinishReason.LENGTH for choice in range(3))
    world.check_empty()


def test_cancelling_ends_choices_that_wait_for_the_prompt() -> None:
    """Choices that have not started end with their request."""
    world = make_world(max_prefill_chunk=4)
    world.add(make_request(1, prompt_ids=prompt(10), num_choices=3))
    world.step()
    world.scheduler.cancel(1)
    world.receive(world.scheduler.take_events())
    assert all(world.end_of(1, choice).reason is FinishReason.CANCELLED for choice in range(3))
    world.check_empty()
