"""What may wait, counted where any thread may ask."""

from __future__ import annotations

import threading

import pytest

from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.messages import SchedulerConfig
from engine_service.scheduling.queue_limits import QueueLimits
from service_common.errors import OutOfRangeError, ResourceExhaustedError
from tests.engine_service.scheduler_world import make_request, make_world


def make_limits(max_requests: int = 4, max_tokens: int = 100) -> QueueLimits:
    """Limits of so many requests and tokens."""
    config = SchedulerConfig(context_length=8, max_queued_requests=max_requests, max_queued_tokens=max_tokens)
    return QueueLimits(config)


def test_both_limits_refuse_at_once_with_the_numbers() -> None:
    """What is too much is RESOURCE_EXHAUSTED, tells count and limit, and when to try again."""
    limits = make_limits(max_requests=2, max_tokens=10)
    limits.enter(make_request(1, prompt_len=4))
    with pytest.raises(ResourceExhaustedError, match="4 prompt tokens wait and this request has 7; the limit is 10"):
        limits.enter(make_request(2, prompt_len=7))
    limits.enter(make_request(3, prompt_len=6))
    with pytest.raises(
        ResourceExhaustedError, match="2 requests wait, which is the limit; try again in 1 s"
    ) as refused:
        limits.enter(make_request(4, prompt_len=1))
    assert refused.value.retry_after_seconds == 1.0


def test_a_request_counts_once_and_leaves_once() -> None:
    """Entering or leaving twice changes nothing."""
    limits = make_limits(max_requests=1)
    request = make_request(1)
    limits.enter(request)
    limits.enter(request)
    limits.check_integrity({1: 4})
    limits.leave(1)
    limits.leave(1)
    limits.enter(make_request(2))
    with pytest.raises(IntegrityError, match="not all that wait are counted"):
        limits.check_integrity({1: 4})


def test_no_more_than_the_limit_get_in_from_many_threads() -> None:
    """Of a thousand requests of ten threads exactly as many enter as may wait (KV-1)."""
    limits = make_limits(max_requests=300, max_tokens=10_000)
    entered: list[int] = []

    def work(thread: int) -> None:
        for number in range(thread * 100, thread * 100 + 100):
            try:
                limits.enter(make_request(number))
            except ResourceExhaustedError:
                continue
            entered.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 300
    limits.check_integrity(dict.fromkeys(entered, 4))


def test_a_place_taken_before_is_the_one_that_the_request_uses() -> None:
    """A request that has entered is taken in though the queue is full by then; its first step frees the place."""
    world = make_world(max_queued_requests=1)
    request = make_request(1)
    world.scheduler.queue_limits.enter(request)
    assert not world.add(make_request(2))
    assert world.add(request)
    world.step()
    assert world.add(make_request(2))
    world.finish()


def test_a_request_that_is_refused_for_itself_gives_its_place_back() -> None:
    """What can never be served does not count as waiting."""
    world = make_world(max_queued_requests=1, context_length=16)
    with pytest.raises(OutOfRangeError):
        world.scheduler.add(make_request(1, prompt_len=16))
    assert world.add(make_request(2))
    world.finish()
