"""The scheduler under whatever may come: random arrivals, cancels, stops, credits, timeouts, failures, tiny pools.

World checks every step and event: exactly one end per choice and nothing after it, tokens as if alone, credit never
exceeded, the step's limits kept, blocks and tables whole, and each slot that is read holding what the sequence's own
tokens say. At the end nothing may be left but what the prefix cache keeps.
"""

from __future__ import annotations

import gc
import random
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.messages import Event, FinishedEvent, SchedulerConfig
from engine_service.scheduling.sequence import FinishReason, Request, SequenceId
from service_common.errors import InternalError
from tests.engine_service.scheduler_world import CorruptedDrafts, World, make_request

CONTEXT_LENGTH = 24
BLOCK_SIZES = (1, 3, 4, 8)
DEVICE_ERROR = InternalError("the device failed", reason="DEVICE")


def build_world(block_size: int, spare_blocks: int, max_num_seqs: int, spare_tokens: int, chunk: int) -> World:
    """A world whose pool just holds one full context, and `spare_blocks` more. Its steps take time."""
    config = SchedulerConfig(
        context_length=CONTEXT_LENGTH,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + spare_tokens,
        max_prefill_chunk=chunk,
        min_prefill_tokens=1,
        max_queued_requests=6,
        max_queued_tokens=3 * CONTEXT_LENGTH,
        priority_step_seconds=1.0,
        pause_grace_seconds=0.5,
        pause_timeout_seconds=20.0,
    )
    drafter = Drafter(lambda sequence: CorruptedDrafts(one_in=sequence.request.id % 4))
    world = World(config, -(-CONTEXT_LENGTH // block_size) + spare_blocks, block_size, drafter)
    world.step_seconds, world.token_seconds = 0.02, 0.002
    return world


def prompt_like(world: World, number: int, prompt_len: int) -> tuple[int, ...]:
    """A prompt that repeats what an earlier request had, output included, up to a point, and then goes its own way."""
    known: tuple[int, ...] = ()
    if world.recent:
        earlier = world.recent[number % len(world.recent)]
        known = (earlier.request.prompt_ids + tuple(earlier.ids))[: number % (CONTEXT_LENGTH - 1)]
    return (known + make_request(number, prompt_len).prompt_ids)[:prompt_len]


class SchedulerMachine(RuleBasedStateMachine):
    """What clients and time may do to a scheduler, in any order."""

    world: World
    next_id: int

    @initialize(
        block_size=st.sampled_from(BLOCK_SIZES),
        spare_blocks=st.integers(0, 6),
        max_num_seqs=st.integers(1, 5),
        spare_tokens=st.integers(0, 20),
        chunk=st.sampled_from([1, 3, 7, 512]),
    )
    def start(self, block_size: int, spare_blocks: int, max_num_seqs: int, spare_tokens: int, chunk: int) -> None:
        """An empty scheduler."""
        self.world = build_world(block_size, spare_blocks, max_num_seqs, spare_tokens, chunk)
        self.next_id = 1

    @rule(
        prompt_len=st.integers(1, CONTEXT_LENGTH - 1),
        max_tokens=st.integers(1, CONTEXT_LENGTH),
        credit=st.none() | st.integers(0, 5),
        timeout=st.none() | st.floats(0.0, 30.0),
        num_choices=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(-3, 3),
        ignore_eos=st.booleans(),
        stream_id=st.integers(0, 2),
        cache_salt=st.sampled_from(["", "", "", "other", None]),
        max_draft_tokens=st.sampled_from([0, 1, 4, 16]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
    )
    def arrive(
        self,
        prompt_len: int,
        max_tokens: int,
        credit: int | None,
        timeout: float | None,
        num_choices: int,
        priority: int,
        ignore_eos: bool,
        stream_id: int,
        cache_salt: str | None,
        max_draft_tokens: int,
        prompt_logprobs: int | None,
    ) -> None:
        """A request arrives."""
        now = self.world.clock.now
        request = make_request(
            self.next_id,
            prompt_ids=prompt_like(self.world, self.next_id, prompt_len),
            max_tokens=max_tokens,
            arrival=now,
            deadline=None if timeout is None else now + timeout,
            num_choices=num_choices,
            priority=priority,
            credit=credit,
            min_tokens=min(2, max_tokens),
            stop_ids=(5, 6),
            ignore_eos=ignore_eos,
            stream_id=stream_id,
            cache_salt=cache_salt,
            max_draft_tokens=max_draft_tokens,
            prompt_logprobs=prompt_logprobs,
        )
        self.next_id += 1
        self.world.add(request)

    @rule(count=st.integers(1, 8), seconds=st.floats(0.0, 1.0))
    def run_steps(self, count: int, seconds: float) -> None:
        """A few steps run, each of which takes time."""
        for _ in range(count):
            self.world.step()
            self.world.clock.now += seconds

    @precondition(lambda self: self.world.live_ids())
    @rule(data=st.data(), in_flight=st.booleans(), act=st.sampled_from(["cancel", "grant", "stop"]))
    def meddle(self, data: st.DataObject, in_flight: bool, act: str) -> None:
        """A client cancels, grants or stops, between two steps or while one is in flight."""
        world = self.world
        step = world.schedule() if in_flight else None
        tokens = world.model.run(step) if step else []
        request_id = data.draw(st.sampled_from(world.live_ids()))
        if act == "cancel":
            world.scheduler.cancel(request_id)
        elif act == "grant":
            world.grant(request_id, data.draw(st.integers(1, 10)))
        else:
            choice = data.draw(st.integers(0, world.choices[SequenceId(request_id, 0)].request.num_choices - 1))
            world.scheduler.stop(request_id, choice, data.draw(st.integers(0, 3)))
        if step is None:
            world.receive(world.scheduler.take_events())
        else:
            world.receive(world.scheduler.update(step, tokens))

    @rule()
    def fail_a_step(self) -> None:
        """The device fails."""
        step = self.world.schedule()
        events = self.world.scheduler.fail(step, DEVICE_ERROR) if step else self.world.scheduler.take_events()
        self.world.receive(events)

    @rule(seconds=st.floats(0.0, 15.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.world.clock.now += seconds

    def teardown(self) -> None:
        """With all credit granted everything ends, and nothing is left."""
        if hasattr(self, "world"):
            self.world.finish()


SchedulerMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
)
TestSchedulerMachine = SchedulerMachine.TestCase


def random_request(rng: random.Random, world: World, request_id: int) -> Request:
    """A request as the random driver submits them."""
    max_tokens = rng.randint(1, CONTEXT_LENGTH)
    now = world.clock.now
    return make_request(
        request_id,
        prompt_ids=prompt_like(world, rng.randrange(1 << 20), rng.randint(1, CONTEXT_LENGTH - 1)),
        max_tokens=max_tokens,
        arrival=now,
        deadline=now + rng.uniform(0, 40) if rng.random() < 0.2 else None,
        num_choices=rng.choice([1, 1, 1, 2, 4]),
        priority=rng.randint(-2, 2),
        credit=rng.randint(0, 4) if rng.random() < 0.4 else None,
        min_tokens=min(1, max_tokens),
        ignore_eos=rng.random() < 0.5,
        stream_id=rng.randrange(3),
        cache_salt=rng.choice(["", "", "", "other", None]),
        max_draft_tokens=rng.choice([0, 0, 3, 16]),
        prompt_logprobs=rng.choice([None, None, None, 0]),
    )


def meddle(rng: random.Random, world: World) -> None:
    """What a client may do to a live request at any time, also while a step is in flight."""
    live = world.live_ids()
    if live and rng.random() < 0.5:
        world.grant(rng.choice(live), rng.randint(1, 6))
    if live and rng.random() < 0.02:
        world.scheduler.cancel(rng.choice(live))
    if live and rng.random() < 0.05:
        request_id = rng.choice(live)
        num_choices = world.choices[SequenceId(request_id, 0)].request.num_choices
        world.scheduler.stop(request_id, rng.randrange(num_choices), 0)


def drive(seed: int, num_steps: int) -> World:
    """A world after so many steps among random arrivals, grants, cancels, stops and failures, run to its end."""
    rng = random.Random(seed)
    world = build_world(
        rng.choice(BLOCK_SIZES), rng.randint(0, 8), rng.randint(1, 6), rng.randint(0, 24), rng.choice([1, 5, 512])
    )
    for number in range(num_steps):
        if rng.random() < 0.3:
            world.add(random_request(rng, world, number))
        meddle(rng, world)
        step = world.schedule()
        if step is None:
            world.receive(world.scheduler.take_events())
        elif rng.random() < 0.005:
            world.receive(world.scheduler.fail(step, DEVICE_ERROR))
        else:
            world.update(step, lambda: meddle(rng, world))
        world.clock.now += rng.choice([0.0, 0.1, 1.0])
    world.finish()
    return world


@pytest.mark.parametrize("part", range(4))
def test_random_traffic_meets_every_case_and_leaves_nothing(part: int) -> None:
    """In 25,000 random steps over tiny pools, four times, every case occurs and all invariants hold (KV-12, MODEL-2).

    That is: every kind of end, preemptions, mixed steps, forks, prefix hits, evictions and copies on write.
    """
    worlds = [drive(seed, 500) for seed in range(50 * part, 50 * part + 50)]
    stats = [world.scheduler.stats() for world in worlds]
    reasons = {reason: sum(world.reasons[reason] for world in worlds) for reason in FinishReason}
    assert sum(figures.num_steps for figures in stats) >= 25_000
    assert min(reasons.values()) >= 50, reasons
    assert sum(figures.num_preemptions for figures in stats) >= 200
    assert sum(world.num_mixed_steps for world in worlds) >= 500
    assert sum(figures.blocks.prefix_hit_tokens for figures in stats) >= 5000
    assert sum(figures.blocks.num_evictions for figures in stats) >= 1000
    assert sum(figures.blocks.num_block_copies for figures in stats) >= 500
    assert sum(figures.accepted_tokens for figures in stats) >= 1000
    assert sum(figures.drafted_tokens - figures.accepted_tokens for figures in stats) >= 1000


def test_the_same_traffic_gives_the_same_events() -> None:
    """Nothing in the scheduler depends on chance, hash order or the address of an object."""

    def events(seed: int) -> list[Event]:
        log = drive(seed, 200).log
        return [event._replace(error=None) if isinstance(event, FinishedEvent) else event for event in log]

    assert events(7) == events(7)
    assert events(7) != events(8)


def test_everything_accepted_ends_within_its_work() -> None:
    """A crowd in a pool for one takes no more steps than its requests one by one would: no thrashing (ISSUE-7)."""
    world = build_world(block_size=4, spare_blocks=0, max_num_seqs=3, spare_tokens=4, chunk=5)
    for number in range(1, 7):
        world.add(make_request(number, 10, 14, priority=number % 3))
    num_prefill_steps, num_decode_steps = 2, 13
    assert world.run_until_idle() <= 6 * (num_prefill_steps + num_decode_steps)
    assert world.scheduler.stats().num_preemptions > 0
    world.check_empty()


def test_thousands_of_requests_leave_memory_flat() -> None:
    """Memory after 1,500 requests that ended in all ways is that after 100 (KV-2)."""
    world = build_world(block_size=4, spare_blocks=4, max_num_seqs=4, spare_tokens=24, chunk=512)

    def serve(first: int, count: int) -> int:
        for number in range(first, first + count):
            world.scheduler.add(make_request(number, 5, 4, credit=number % 3, deadline=world.clock.now + 50))
            step = world.scheduler.schedule()
            if step is not None:
                world.scheduler.update(step, world.model.run(step))
            world.scheduler.cancel(number - 2)
            world.scheduler.take_events()
        for number in range(first, first + count):
            world.scheduler.cancel(number)
        world.scheduler.take_events()
        world.check_empty()
        gc.collect()  # empties the interpreter's own lists of tuples for reuse
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = serve(1, 100)
        assert serve(101, 1500) - before < 8192
    finally:
        tracemalloc.stop()
