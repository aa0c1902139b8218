"""Order and preemption: who goes first, who gives way when blocks run out, and that nobody starves."""

from __future__ import annotations

from typing import Any

from engine_service.scheduling.messages import FinishedEvent
from engine_service.scheduling.sequence import FinishReason, SequenceId, SequenceState
from tests.engine_service.scheduler_world import World, chunks_of, make_request, make_world


def states(world: World) -> dict[int, SequenceState]:
    """Live requests by id, and their states."""
    return {info.request_id: info.state for info in world.scheduler.requests()}


def order(world: World) -> list[int]:
    """Ids of the requests in the next step, in the step's order."""
    return [chunk[0] for chunk in chunks_of(world.schedule())]


def make_tight_world(num_blocks: int, **changes: Any) -> World:
    """Blocks of 4 tokens, and few of them."""
    return make_world(num_blocks=num_blocks, context_length=16, **changes)


def test_requests_of_one_priority_go_in_order_of_arrival() -> None:
    """First come, first served, whatever the order of ids."""
    world = make_world()
    for number, arrival in ((1, 93.0), (2, 91.0), (3, 92.0)):
        world.add(make_request(number, arrival=arrival))
    assert order(world) == [2, 3, 1]


def test_a_higher_priority_goes_first() -> None:
    """A higher priority goes before what came a little earlier."""
    world = make_world()
    for number, priority in ((1, -1), (2, 0), (3, 5), (4, 5)):
        world.add(make_request(number, priority=priority))
    assert order(world) == [3, 4, 2, 1]


def test_priority_is_a_bounded_head_start() -> None:
    """One step of priority overtakes what came up to priority_step_seconds earlier, and nothing older (ISSUE-7)."""
    world = make_world(priority_step_seconds=10.0)
    world.add(make_request(1, arrival=80.0))
    world.add(make_request(2, arrival=89.9, priority=1))
    world.add(make_request(3, arrival=90.1, priority=1))
    assert order(world) == [2, 1, 3]


def test_no_stream_of_higher_priorities_starves_a_request() -> None:
    """While higher priorities arrive without end, a low one still runs within its bound (ISSUE-7)."""
    world = make_world(max_num_seqs=1, priority_step_seconds=2.0)
    world.add(make_request(1, max_tokens=2, priority=-5))
    for number in range(2, 400):
        world.add(make_request(number, max_tokens=2, priority=5, arrival=world.clock.now))
        world.step()
        world.step()
        world.clock.now += 1.0
        if 1 not in states(world):
            break
    assert world.clock.now <= 100 + 10 * 2.0 + 2
    world.finish()


def test_a_large_request_is_not_passed_over_by_small_ones() -> None:
    """When the first in order does not fit yet, those behind it wait too, so that it comes in (ISSUE-7)."""
    world = make_tight_world(num_blocks=4)
    world.add(make_request(1, prompt_len=8, max_tokens=3))
    world.step()
    world.add(make_request(2, prompt_len=12, max_tokens=2))
    world.add(make_request(3, prompt_len=2, max_tokens=2))
    world.step()
    assert states(world)[3] is SequenceState.QUEUED
    world.run_until_idle()
    ends = [event.request_id for event in world.log if isinstance(event, FinishedEvent)]
    assert ends.index(2) <= ends.index(3)
    world.check_empty()


def test_when_blocks_run_out_the_last_in_order_is_preempted() -> None:
    """The youngest of the lowest priority gives way; the others keep what they have."""
    world = make_tight_world(num_blocks=6)
    world.add(make_request(1, prompt_len=7, max_tokens=6))
    world.add(make_request(2, prompt_len=7, max_tokens=6, priority=1))
    world.add(make_request(3, prompt_len=7, max_tokens=6))
    while SequenceState.PREEMPTED not in states(world).values():
        world.step()
    assert states(world) == {1: SequenceState.DECODE, 2: SequenceState.DECODE, 3: SequenceState.PREEMPTED}
    assert world.scheduler.stats().num_preemptions == 1
    world.finish()


def test_a_preempted_request_continues_with_the_same_tokens() -> None:
    """After preemption all known tokens are computed again, and none is lost, repeated or changed (CLI-2)."""
    world = make_tight_world(num_blocks=4)
    world.add(make_request(1, prompt_len=6, max_tokens=8))
    world.add(make_request(2, prompt_len=6, max_tokens=8))
    while states(world).get(2) is not SequenceState.PREEMPTED:
        world.step()
    before = list(world.choices[SequenceId(2, 0)].ids)
    assert before
    while states(world)[2] is SequenceState.PREEMPTED:
        step = world.schedule()
        assert step is not None
        recomputed = [chunk for chunk in chunks_of(step) if chunk[0] == 2]
        world.update(step)
    assert recomputed == [(2, 0, 6 + len(before), True)]
    world.run_until_idle()
    assert world.choices[SequenceId(2, 0)].ids[: len(before)] == before
    assert world.end_of(2).reason is FinishReason.LENGTH
    world.check_empty()


def test_the_first_in_order_is_never_preempted() -> None:
    """With blocks for little more than one request, the first in order runs through without a break."""
    world = make_tight_world(num_blocks=4)
    for number in range(1, 6):
        world.add(make_request(number, prompt_len=3, max_tokens=13))
    while world.scheduler.has_work:
        first = min(states(world))
        step = world.schedule()
        assert chunks_of(step)[0][0] == first
        assert states(world)[first] is not SequenceState.PREEMPTED
        assert step is not None
        world.update(step)
    assert world.scheduler.stats().num_preemptions > 0
    world.check_empty()


def test_paused_requests_are_preempted_first() -> None:
    """A paused request gives way before any running one, though it came first."""
    world = make_tight_world(num_blocks=5)
    world.add(make_request(1, prompt_len=7, max_tokens=6, credit=2))
    world.add(make_request(2, prompt_len=7, max_tokens=9))
    world.run_until_idle()
    assert states(world) == {1: SequenceState.PREEMPTED}
    assert world.scheduler.stats().num_preemptions == 1
    world.finish()


def test_a_running_request_grows_at_the_cost_of_the_last_paused_one() -> None:
    """Of two paused requests the later one gives its blocks to a running one; the earlier keeps its own."""
    world = make_tight_world(num_blocks=6)
    world.add(make_request(1, prompt_len=7, credit=1))
    world.add(make_request(2, prompt_len=7, credit=1))
    world.add(make_request(3, prompt_len=7, max_tokens=9))
    world.run_until_idle()
    assert states(world) == {1: SequenceState.PAUSED, 2: SequenceState.PREEMPTED}
    world.finish()


def test_of_several_paused_requests_the_last_in_order_gives_way() -> None:
    """Among paused requests too, the lowest priority and then the youngest is preempted first."""
    world = make_tight_world(num_blocks=7)
    for number, priority in ((1, 0), (2, -1), (3, 0)):
        world.add(make_request(number, prompt_len=7, credit=1, priority=priority))
    world.run_until_idle()
    for newcomer, prompt_len, preempted in ((4, 11, {2}), (5, 15, {2, 3})):
        world.add(make_request(newcomer, prompt_len=prompt_len, max_tokens=1))
        world.run_until_idle()
        assert {number for number, state in states(world).items() if state is SequenceState.PREEMPTED} == preempted
    world.finish()


def test_a_preempted_request_without_credit_waits_for_it() -> None:
    """Preempted while paused, a request comes back only once it has credit, and still times out without.

    What survives of its blocks in the prefix cache is not computed again.
    """
    world = make_tight_world(num_blocks=4, pause_timeout_seconds=30.0)
    world.add(make_request(1, prompt_len=7, max_tokens=6, credit=2))
    world.run_until_idle()
    world.add(make_request(2, prompt_len=10, max_tokens=3))
    world.run_until_idle()
    assert states(world) == {1: SequenceState.PREEMPTED}
    assert world.scheduler.next_deadline() == 130.0
    world.grant(1, 4)
    assert chunks_of(world.schedule()) == [(1, 4, 5, True)]


def test_newcomers_take_blocks_of_paused_requests_only_after_a_grace() -> None:
    """While others run, a pause shorter than the grace does not cost a request its blocks; a longer one does."""
    world = make_tight_world(num_blocks=6, pause_grace_seconds=5.0)
    world.add(make_request(1, prompt_len=7, max_tokens=6, credit=1))
    world.add(make_request(2, prompt_len=4, max_tokens=12))
    world.step()
    world.add(make_request(3, prompt_len=12, max_tokens=2))
    world.clock.now += 4.0
    world.step()
    assert (states(world)[1], states(world)[3]) == (SequenceState.PAUSED, SequenceState.QUEUED)
    world.clock.now += 1.0
    world.step()
    assert (states(world)[1], states(world)[3]) == (SequenceState.PREEMPTED, SequenceState.DECODE)
    world.finish()


def test_an_idle_device_does_not_wait_for_the_grace() -> None:
    """When nothing else runs, a newcomer gets the blocks of paused requests at once."""
    world = make_tight_world(num_blocks=4, pause_grace_seconds=5.0)
    world.add(make_request(1, prompt_len=7, max_tokens=6, credit=1))
    world.run_until_idle()
    world.add(make_request(2, prompt_len=12, max_tokens=2))
    assert order(world) == [2]
    assert states(world)[1] is SequenceState.PREEMPTED


def test_no_paused_request_is_preempted_in_vain() -> None:
    """Where even all long-paused blocks would not be enough for a newcomer, the paused keep theirs."""
    world = make_tight_world(num_blocks=5, pause_grace_seconds=0.0)
    world.add(make_request(1, prompt_len=3, max_tokens=6, credit=1))
    world.add(make_request(2, prompt_len=7, max_tokens=8))
    world.step()
    world.add(make_request(3, prompt_len=13, max_tokens=2))
    world.step()
    assert states(world) == {1: SequenceState.PAUSED, 2: SequenceState.DECODE, 3: SequenceState.QUEUED}
    world.finish()


def test_requests_that_resume_beyond_max_num_seqs_take_turns_by_order() -> None:
    """More sequences may hold blocks than a step holds; each step takes the first of them."""
    world = make_world(max_num_seqs=1)
    world.add(make_request(1, credit=1))
    world.step()
    world.add(make_request(2, credit=3))
    world.step()
    world.grant(1, 7)
    assert order(world) == [1]


def test_cancelling_a_preempted_request_leaves_nothing() -> None:
    """A request can be cancelled while preempted; its tokens so far are its usage."""
    world = make_tight_world(num_blocks=4)
    world.add(make_request(1, prompt_len=6, max_tokens=8))
    world.add(make_request(2, prompt_len=6, max_tokens=8))
    while states(world).get(2) is not SequenceState.PREEMPTED:
        world.step()
    world.scheduler.cancel(2)
    world.receive(world.scheduler.take_events())
    assert world.end_of(2).usage.generated_tokens == len(world.choices[SequenceId(2, 0)].ids) > 0
    world.finish()
