"""The engine: schedule → run → update. Called from the engine thread alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import structlog

from engine_service.scheduling.messages import Event, ScheduledStep
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Request
from service_common.errors import DeviceError, InternalError, RequestError

MAX_FAILED_STEPS = 3  # in a row; then the device is taken for lost


class AdmittedEvent(NamedTuple):
    """A request was taken in; events of its choices follow."""

    request_id: int


class RefusedEvent(NamedTuple):
    """A request was not taken in; nothing follows."""

    request_id: int
    error: RequestError


EngineEvent = AdmittedEvent | RefusedEvent | Event


StepObserver = Callable[[ScheduledStep], None]  # hears of each step that ran, on the engine thread; must not block


class Runner(Protocol):
    """What computes a step: `ModelRunner`, or a stand-in for tests that need no device."""

    def run(self, step: ScheduledStep) -> Sequence[SampledToken]:
        """A token for each row of logits of the step, in order of chunks. DeviceError where the device fails."""

    def close(self) -> None:
        """Frees the device."""


class Engine:
    """A scheduler and a model runner. Events come out of `step`, in the order in which they happened."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        clock: Callable[[], float] = time.monotonic,
        on_step: StepObserver = lambda step: None,
    ) -> None:
        self.scheduler, self._runner, self._clock, self._on_step = scheduler, runner, clock, on_step
        self._admissions: list[EngineEvent] = []
        self._num_failed_steps = 0

    def add(self, request: Request) -> None:
        """Takes in a request, or refuses it: AdmittedEvent or RefusedEvent."""
        try:
            self.scheduler.add(request)
        except RequestError as error:
            self._admissions.append(RefusedEvent(request.id, error))
        else:
            self._admissions.append(AdmittedEvent(request.id))

    def has_work(self) -> bool:
        """Whether `step` would do something now."""
        return self.scheduler.has_work or bool(self._admissions)

    def seconds_to_deadline(self) -> float | None:
        """How long a thread without work may sleep, at least 0; None for as long as it likes."""
        deadline = self.scheduler.next_deadline()
        return None if deadline is None else max(0.0, deadline - self._clock())

    def step(self) -> list[EngineEvent]:
        """One forward pass, if there is something to run.

        DeviceError when passes keep failing; a single failure ends the requests that were in it.
        """
        step = self.scheduler.schedule()
        events, self._admissions = self._admissions, []
        if step is None:
            return events + self.scheduler.take_events()
        try:
            tokens = self._runner.run(step)
        except DeviceError as error:
            structlog.get_logger(__name__).error("step failed", error=str(error))
            self._num_failed_steps += 1
            if self._num_failed_steps >= MAX_FAILED_STEPS:
                raise
            return events + self.scheduler.fail(
                step, InternalError(f"the device failed: {error}", reason="DEVICE_FAILED")
            )
        self._num_failed_steps = 0
        events += self.scheduler.update(step, tokens)
        self._on_step(step)
        return events

    def close(self) -> None:
        """Frees the device. Requests that are still live get no more events."""
        self._runner.close()
