"""The engine thread: commands from anywhere, events in order, and every way to end."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from engine_service.engine import MAX_FAILED_STEPS, AdmittedEvent, Engine, EngineEvent
from engine_service.engine_loop import EngineLoop
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.messages import FinishedEvent, ScheduledStep, TokenEvent
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.scheduler import Scheduler, SchedulerConfig
from service_common.errors import DeviceError, ResourceExhaustedError
from tests.engine_service.engine_server import FakeRunner
from tests.in_process import request

NUM_THREADS, NUM_OPERATIONS = 10, 1000


class Recorder:
    """Collects events and tells when enough choices have ended."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self._changed = threading.Condition()

    def __call__(self, events: Sequence[EngineEvent]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def wait_for_ends(self, count: int, seconds: float = 20) -> None:
        def enough() -> bool:
            return sum(isinstance(event, FinishedEvent) for event in self.events) >= count

        with self._changed:
            assert self._changed.wait_for(enough, seconds)


def make_engine(runner: FakeRunner) -> Engine:
    runner.gate.set()
    runner.delay_seconds = 0.0
    config = SchedulerConfig(context_length=64, max_num_seqs=16, max_queued_requests=100_000, max_queued_tokens=1 << 30)
    return Engine(Scheduler(config, BlockManager(64, 8)), runner)


def test_ten_threads_of_a_thousand_operations_leave_a_sound_engine() -> None:
    """Adds, grants, stops and cancels from ten threads: each admitted choice ends once, nothing is left (KV-1)."""
    runner, recorder = FakeRunner(), Recorder()
    engine = make_engine(runner)
    loop = EngineLoop(lambda: engine, recorder)
    loop.start()

    def work(thread: int) -> None:
        for operation in range(NUM_OPERATIONS // 4):
            request_id = thread * NUM_OPERATIONS + operation
            new = request(request_id, [3, 4, 5], 4, initial_credit=operation % 3)
            loop.post(lambda engine, new=new: engine.add(new))  # type: ignore[misc]
            loop.post(lambda engine, request_id=request_id: engine.scheduler.grant(request_id, 2))  # type: ignore[misc]
            loop.post(lambda engine, request_id=request_id: engine.scheduler.stop(request_id, 0, 0))  # type: ignore[misc]
            loop.post(lambda engine, request_id=request_id: engine.scheduler.cancel(request_id))  # type: ignore[misc]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.wait_for_ends(NUM_THREADS * NUM_OPERATIONS // 4)
    loop.query(lambda engine: engine.scheduler.check_integrity()).result(5)
    assert loop.query(lambda engine: engine.scheduler.stats().blocks.num_used_blocks).result(5) == 0
    loop.close()
    ended = [event.request_id for event in recorder.events if isinstance(event, FinishedEvent)]
    admitted = [event.request_id for event in recorder.events if isinstance(event, AdmittedEvent)]
    assert sorted(ended) == sorted(admitted)
    assert len(set(ended)) == len(ended)


def test_events_come_in_order_and_the_thread_sleeps_between() -> None:
    """Admission, tokens, end; without work no steps are run (ISSUE-3)."""
    runner, recorder = FakeRunner(), Recorder()
    engine = make_engine(runner)
    loop = EngineLoop(lambda: engine, recorder)
    loop.start()
    loop.post(lambda engine: engine.add(request(1, [3], 3)))
    recorder.wait_for_ends(1)
    assert [type(event) for event in recorder.events] == [
        AdmittedEvent,
        TokenEvent,
        TokenEvent,
        TokenEvent,
        FinishedEvent,
    ]
    steps = runner.num_steps
    assert loop.seconds_in_turn() == pytest.approx(0.0, abs=1.0)
    threading.Event().wait(0.05)
    assert runner.num_steps == steps
    loop.close()
    loop.close()
    assert runner.is_closed
    assert loop.stopped.result(5) is None


def test_a_load_that_fails_is_told_to_whoever_waits() -> None:
    """`loaded` carries the error, and the thread ends."""

    def load() -> Engine:
        raise DeviceError("open device", "DEVICE_NOT_FOUND")

    loop = EngineLoop(load, lambda events: None)
    loop.start()
    assert isinstance(loop.loaded.exception(5), DeviceError)
    assert loop.stopped.result(5) is None
    loop.close()


def test_a_device_that_keeps_failing_ends_the_thread() -> None:
    """After some failed steps in a row the device is taken for lost; `stopped` carries the error."""
    runner, recorder = FakeRunner(), Recorder()
    engine = make_engine(runner)
    runner.failures = [DeviceError("launch kernel", "OUT_OF_RESOURCES") for _ in range(MAX_FAILED_STEPS)]
    loop = EngineLoop(lambda: engine, recorder)
    loop.start()
    for request_id in range(1, MAX_FAILED_STEPS):
        loop.post(lambda engine, request_id=request_id: engine.add(request(request_id, [3], 3)))  # type: ignore[misc]
        recorder.wait_for_ends(request_id)
    loop.post(lambda engine: engine.add(request(99, [3], 3)))
    assert isinstance(loop.stopped.exception(5), DeviceError)
    loop.close()


def test_a_full_queue_refuses_while_a_step_is_in_flight() -> None:
    """Whoever asks is told at once, however long the step takes; a withdrawn request makes room at once."""
    in_flight = threading.Event()

    class BusyRunner(FakeRunner):
        def run(self, step: ScheduledStep) -> Sequence[SampledToken]:
            in_flight.set()
            return super().run(step)

    runner, recorder = BusyRunner(), Recorder()
    config = SchedulerConfig(context_length=64, max_num_seqs=1, max_queued_requests=1)
    loop = EngineLoop(lambda: Engine(Scheduler(config, BlockManager(64, 8)), runner), recorder)
    loop.start()
    loop.loaded.result(5)
    loop.post(lambda engine: engine.add(request(1, [3], 3)))
    assert in_flight.wait(5)
    second, third = request(2, [3], 3), request(3, [3], 3)
    loop.reserve(second)
    with pytest.raises(ResourceExhaustedError, match="1 requests wait, which is the limit"):
        loop.reserve(third)
    loop.withdraw(second.id)
    loop.reserve(third)
    loop.post(lambda engine: engine.add(third))
    runner.gate.set()
    recorder.wait_for_ends(2)
    loop.close()
