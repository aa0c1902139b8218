"""How choices end, and what is told of it: exactly one Finished each, and nothing after it."""

from __future__ import annotations

import pytest

from engine_service.scheduling.messages import FinishedEvent, TokenEvent
from engine_service.scheduling.sequence import FinishReason, SequenceId
from service_common.errors import InternalError, InvalidArgumentError
from tests.engine_service.scheduler_world import EOG_ID, VOCAB_SIZE, ids_alone, make_request, make_world


def id_at(request_id: int, position: int) -> int:
    """The id that the request generates at `position` when nothing ends it."""
    return ids_alone(make_request(request_id), 0, position + 1)[position]


def test_a_stop_token_ends_the_choice_without_being_delivered_as_output() -> None:
    """An end-of-generation token is not a TokenEvent; it is the stop_token_id, generated and delivered."""
    world = make_world()
    requests = (make_request(number, ignore_eos=False) for number in range(500))
    request = next(request for request in requests if EOG_ID in ids_alone(request, 0, 8)[1:7])
    position = ids_alone(request, 0, 8).index(EOG_ID)
    world.add(request)
    world.run_until_idle()
    end = world.end_of(request.id)
    assert (end.reason, end.stop_token_id) == (FinishReason.STOP, EOG_ID)
    assert (end.usage.generated_tokens, end.usage.delivered_tokens) == (position + 1, position + 1)
    assert len(world.log) == position + 1


def test_a_stop_id_ends_the_choice_from_min_tokens_on() -> None:
    """A stop id ends the choice at its first occurrence that min_tokens allows."""
    world = make_world()
    stop_id = id_at(1, 3)
    world.add(make_request(1, stop_ids=(stop_id,)))
    world.add(make_request(2, stop_ids=tuple(range(1, VOCAB_SIZE, 2)), min_tokens=8, max_tokens=20))
    world.run_until_idle()
    assert world.end_of(1).stop_token_id == stop_id
    assert world.end_of(1).usage.generated_tokens == 4
    assert world.end_of(2).usage.generated_tokens > 8


def test_ignore_eos_delivers_the_token_and_goes_on() -> None:
    """With ignore_eos an end-of-generation token is output like any other."""
    world = make_world()
    number = next(n for n in range(1, 500) if EOG_ID in ids_alone(make_request(n), 0, 6))
    world.add(make_request(number))
    world.run_until_idle()
    assert EOG_ID in world.choices[SequenceId(number, 0)].ids
    assert world.end_of(number).reason is FinishReason.LENGTH


def test_max_tokens_is_clamped_to_the_context() -> None:
    """A request that asks beyond the context ends with LENGTH where the context does."""
    world = make_world(context_length=16)
    world.add(make_request(1, prompt_len=10, max_tokens=100))
    world.run_until_idle()
    assert world.end_of(1).reason is FinishReason.LENGTH
    assert world.end_of(1).usage.generated_tokens == 6


def test_choices_are_independent_and_end_one_by_one() -> None:
    """Each of n choices has its own tokens and its own end; the request leaves with the last."""
    world = make_world()
    world.add(make_request(1, num_choices=3))
    world.step()
    world.step()
    world.scheduler.stop(1, 1, 1)
    assert [info.request_id for info in world.scheduler.requests()] == [1]
    world.run_until_idle()
    reasons = [world.end_of(1, choice).reason for choice in range(3)]
    assert reasons == [FinishReason.LENGTH, FinishReason.STOP, FinishReason.LENGTH]
    assert world.choices[SequenceId(1, 0)].ids != world.choices[SequenceId(1, 2)].ids
    world.check_empty()


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_a_deadline_ends_a_request_wherever_it_is(num_steps: int) -> None:
    """The deadline ends a request queued, in prefill and in decode, at the next schedule, and frees its blocks."""
    world = make_world(max_prefill_chunk=2)
    world.add(make_request(1, max_tokens=50, deadline=110.0))
    for _ in range(num_steps):
        world.step()
    assert world.scheduler.next_deadline() == 110.0
    world.clock.now = 110.0
    world.step()
    assert world.end_of(1).reason is FinishReason.DEADLINE
    world.check_empty()


def test_stop_ends_a_choice_and_counts_what_was_delivered() -> None:
    """A stop string found upstream ends the choice with STOP; usage tells generated from delivered."""
    world = make_world()
    world.add(make_request(1, max_tokens=20))
    for _ in range(5):
        world.step()
    assert world.scheduler.stop(1, 0, 3)
    world.receive(world.scheduler.take_events())
    assert world.end_of(1).reason is FinishReason.STOP
    assert (world.end_of(1).usage.generated_tokens, world.end_of(1).usage.delivered_tokens) == (5, 3)
    assert not world.scheduler.stop(1, 0, 3)
    world.check_empty()


def test_stop_beyond_what_was_generated_ends_the_choice_with_an_error() -> None:
    """A client that claims more delivered tokens than there are gets INVALID_ARGUMENT for that choice, in-band."""
    world = make_world()
    world.add(make_request(1))
    world.step()
    world.scheduler.stop(1, 0, 2)
    world.receive(world.scheduler.take_events())
    assert world.end_of(1).reason is FinishReason.ERROR
    assert isinstance(world.end_of(1).error, InvalidArgumentError)
    world.check_empty()


def test_stop_for_a_choice_that_does_not_exist_is_an_error() -> None:
    """An unknown choice of a live request is named with its limit, and the request goes on."""
    world = make_world()
    world.add(make_request(1))
    with pytest.raises(InvalidArgumentError, match=r"stop\.choice is 1; request 1 has 1 choices"):
        world.scheduler.stop(1, 1, 0)
    world.finish()


def test_what_names_no_live_request_is_ignored() -> None:
    """cancel, grant and stop for a request that is not live say so and do nothing."""
    world = make_world()
    assert not world.scheduler.cancel(9)
    assert not world.scheduler.grant(9, 1)
    assert not world.scheduler.stop(9, 0, 0)
    assert world.scheduler.take_events() == []


@pytest.mark.parametrize("act", ["cancel", "stop"])
def test_what_ends_while_a_step_is_in_flight_gets_nothing_more(act: str) -> None:
    """A choice that ends between schedule and update frees its blocks at once; its sampled token is dropped."""
    world = make_world()
    world.add(make_request(1))
    world.add(make_request(2))
    world.step()
    step = world.schedule()
    assert step is not None
    tokens = world.model.run(step)
    if act == "cancel":
        world.scheduler.cancel(1)
    else:
        world.scheduler.stop(1, 0, 1)
    events = world.receive(world.scheduler.update(step, tokens))
    assert [(event.request_id, type(event)) for event in events] == [(1, FinishedEvent), (2, TokenEvent)]
    assert world.blocks.sequence_ids() == {SequenceId(2, 0)}
    world.finish()


def test_a_failed_step_ends_its_sequences_and_no_others() -> None:
    """fail ends the sequences of the step with ERROR and frees their blocks; those that were not in it go on."""
    world = make_world(max_num_seqs=2)
    for number in (1, 2, 3):
        world.add(make_request(number))
    step = world.schedule()
    assert step is not None
    error = InternalError("the device is gone", reason="DEVICE")
    world.receive(world.scheduler.fail(step, error))
    assert [world.end_of(number).error for number in (1, 2)] == [error, error]
    assert world.blocks.num_used_blocks == 0
    world.run_until_idle()
    assert world.end_of(3).reason is FinishReason.LENGTH
    world.check_empty()


def test_timings_come_from_the_clock() -> None:
    """queue runs to the first step, prefill to the first token, decode to the last."""
    world = make_world(max_prefill_chunk=2)
    world.add(make_request(1, max_tokens=3, arrival=98.0))
    while world.scheduler.has_work:
        step = world.schedule()
        world.clock.now += 1
        assert step is not None
        world.update(step)
    assert world.end_of(1).timings == (2.0, 2.0, 2.0)


def test_a_request_that_never_ran_has_only_queue_time() -> None:
    """Cancelled in the queue, a request has spent its whole life there."""
    world = make_world()
    world.add(make_request(1))
    world.clock.now += 5
    world.scheduler.cancel(1)
    world.receive(world.scheduler.take_events())
    assert world.end_of(1).timings == (5.0, 0.0, 0.0)
