"""What runs in the next forward pass, and what becomes of its tokens. No OpenCL, no gRPC.

    step = scheduler.schedule()
    events = scheduler.update(step, runner.run(step))

A step holds the newest token of every running sequence and, in what is left of its token budget, prefill chunks; beside
decode tokens no more of them than keeps the step short (`prefill_budget`). Who is admitted next, and why nothing
starves, see `waiting_queue`. When blocks run out a sequence is preempted, to be computed again later as far as the
prefix cache has not kept it: paused ones first, then the last in rank, which is arrival less a head start for priority.
Ranks never change, so of two sequences always the same one gives way: the youngest of the lowest priority, where
priority ages. The first in rank is never preempted while it runs, so something always progresses.

Only the engine thread calls in here, except for `queue_limits`: single ownership stands in for locks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from itertools import takewhile

from engine_service.scheduling.admission import Admission
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.messages import (
    Event,
    FinishedEvent,
    RequestInfo,
    ScheduledStep,
    SchedulerConfig,
    Timings,
    TokenEvent,
    Usage,
)
from engine_service.scheduling.prefill_budget import PrefillBudget
from engine_service.scheduling.queue_limits import QueueLimits
from engine_service.scheduling.request_table import LiveRequest, RequestTable
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import FinishReason, Request, Sequence, SequenceState
from engine_service.scheduling.sequence_queues import SequenceQueues
from engine_service.scheduling.stats import SchedulerStats
from engine_service.scheduling.step_planner import StepPlanner
from service_common.errors import InternalError, InvalidArgumentError, RequestError, ResourceExhaustedError

__all__ = ["FinishedEvent", "Scheduler", "SchedulerConfig", "TokenEvent"]

_DECODE, _PREFILL, _FINISHED = SequenceState.DECODE, SequenceState.PREFILL, SequenceState.FINISHED


class Scheduler:
    """Requests go in by `add`; events come out of `update`, `fail` and `take_events`, in order of happening.

    Whoever enters a request into `queue_limits` before `add` knows at once whether there is room for it.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        block_manager: BlockManager,
        clock: Callable[[], float] = time.monotonic,
        eog_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`clock` gives seconds and never goes back; `eog_token_ids` end a sequence unless it ignores them."""
        self._config = config
        self._blocks = block_manager
        self._clock = clock
        self._admission = Admission(config, block_manager, eog_token_ids)
        self.queue_limits = QueueLimits(config)
        self._requests = RequestTable(self.queue_limits)
        self._queues = SequenceQueues(block_manager)
        self._prefill_budget = PrefillBudget(config.max_step_stretch, config.min_prefill_tokens)
        self._planner = StepPlanner(config, block_manager, self._queues, self._requests, self._prefill_budget)
        self._events: list[Event] = []
        self._in_flight: ScheduledStep | None = None
        self._step_started = 0.0
        self._num_steps = self._num_prompt_tokens = self._num_generated_tokens = 0

    def add(self, request: Request) -> None:
        """Takes in a request, its choices QUEUED.

        OutOfRangeError where the prompt leaves no room in the context or the request could never fit the KV cache,
        ResourceExhaustedError where the queue is full, AlreadyExistsError where the id is live.
        """
        self._requests.check_new(request.id)
        self.queue_limits.enter(request)
        try:
            sequences = self._admission.sequences_of(request)
        except RequestError:
            self.queue_limits.leave(request.id)
            raise
        self._requests.add(LiveRequest(request, sequences))
        now = self._clock()
        for sequence in sequences:
            self._queues.enqueue(sequence, now)

    def cancel(self, request_id: int) -> bool:
        """Ends all choices with CANCELLED. False, and nothing happens, where the request is not live."""
        return self._finish_request(request_id, FinishReason.CANCELLED, self._clock())

    def abort(self, request_id: int, error: RequestError) -> bool:
        """Ends all choices with ERROR. False, and nothing happens, where the request is not live."""
        return self._finish_request(request_id, FinishReason.ERROR, self._clock(), error)

    def grant(self, request_id: int, tokens: int) -> bool:
        """Lets each choice generate `tokens` more. False, and nothing happens, where the request is not live."""
        if tokens < 1:
            raise InvalidArgumentError("credit.tokens", tokens, "must be at least 1")
        live = self._requests.get(request_id)
        if live is None:
            return False
        for sequence in live.sequences:
            if sequence.state is not _FINISHED:
                self._queues.grant(sequence, tokens)
        return True

    def stop(self, request_id: int, choice: int, num_delivered: int) -> bool:
        """Ends a choice with STOP: a stop string was found after `num_delivered` of its tokens; the rest is dropped.

        More tokens than were generated end it with ERROR. False, and nothing happens, where the choice is not live.
        """
        live = self._requests.get(request_id)
        if live is None:
            return False
        if not 0 <= choice < len(live.sequences):
            raise InvalidArgumentError("stop.choice", choice, f"request {request_id} has {len(live.sequences)} choices")
        sequence = live.sequences[choice]
        if sequence.state is _FINISHED:
            return False
        now = self._clock()
        if 0 <= num_delivered <= sequence.num_generated:
            self._finish(sequence, FinishReason.STOP, now, num_delivered=num_delivered)
        else:
            limit = f"the choice has generated {sequence.num_generated} tokens"
            error = InvalidArgumentError("stop.num_delivered_tokens", num_delivered, limit)
            self._finish(sequence, FinishReason.ERROR, now, error=error)
        return True

    def schedule(self) -> ScheduledStep | None:
        """The next step, None where there is nothing to run. First ends what has passed a deadline.

        Changes states and block tables as if the step will run: `update` or `fail` must follow before the next call.
        """
        if self._in_flight is not None:
            raise InternalError("a step is in flight; update or fail comes first", reason="STEP_IN_FLIGHT")
        now = self._clock()
        self._expire(now)
        self._in_flight = self._planner.plan(now)
        self._step_started = now
        return self._in_flight

    def update(self, step: ScheduledStep, sampled_tokens: SequenceOf[SampledToken]) -> list[Event]:
        """Takes in the results of the step in flight: one token per chunk that samples, in order of chunks.

        Tokens of sequences that ended meanwhile are dropped. Returns all events since the last time.
        """
        if len(sampled_tokens) != step.num_samples:
            message = f"the step samples {step.num_samples} tokens and {len(sampled_tokens)} came back"
            raise InternalError(message, reason="SAMPLED_TOKENS")
        self._land(step)
        self._blocks.finish_copies()
        now = self._clock()
        self._prefill_budget.observe(step.num_decodes, step.num_tokens - step.num_decodes, now - self._step_started)
        block_size, accept = self._blocks.block_size, self._accept
        tokens = iter(sampled_tokens)
        for sequence, _, num_tokens, samples in step.chunks:
            token = next(tokens) if samples else None
            state = sequence.state
            if state is _FINISHED:
                continue
            sequence.num_computed += num_tokens
            if sequence.num_computed % block_size < num_tokens:
                self._blocks.commit(sequence)
            if state is _PREFILL:
                self._num_prompt_tokens += num_tokens
                if token is not None:
                    self._end_prefill(sequence, now)
            if token is not None:
                accept(sequence, token, now)
        return self.take_events()

    def fail(self, step: ScheduledStep, error: RequestError) -> list[Event]:
        """The step in flight failed: ends its sequences with ERROR, others go on. Returns events as `update` does."""
        self._land(step)
        now = self._clock()
        for chunk in step.chunks:
            if chunk.sequence.state is not _FINISHED:
                self._finish(chunk.sequence, FinishReason.ERROR, now, error=error)
        self._blocks.finish_copies()
        return self.take_events()

    def take_events(self) -> list[Event]:
        """All events since the last time."""
        events, self._events = self._events, []
        return events

    @property
    def has_work(self) -> bool:
        """Whether `schedule` would give a step."""
        return bool(self._queues.running) or bool(self._queues.waiting)

    def next_deadline(self) -> float | None:
        """When, by the clock, `schedule` next has something to end; None where nothing is limited in time."""
        deadline = self._requests.next_deadline()
        since = next(iter(self._queues.out_of_credit.values()), None)
        if since is None:
            return deadline
        timeout = since + self._config.pause_timeout_seconds
        return timeout if deadline is None else min(deadline, timeout)

    def stats(self) -> SchedulerStats:
        """Figures; O(live choices)."""
        return SchedulerStats(
            **self._requests.count_by_place()._asdict(),
            num_steps=self._num_steps,
            prompt_tokens=self._num_prompt_tokens,
            generation_tokens=self._num_generated_tokens,
            num_preemptions=self._queues.num_preemptions,
            blocks=self._blocks.stats(),
        )

    def requests(self) -> list[RequestInfo]:
        """The live requests, oldest first; O(live choices)."""
        now = self._clock()
        return [live.info(now) for live in self._requests]

    def check_integrity(self) -> None:
        """Raises IntegrityError with the invariant that is broken; O(live choices + blocks)."""
        self._requests.check_integrity()
        self._queues.check_integrity()
        num_live = sum(live.num_live for live in self._requests)
        if num_live != len(self._queues):
            raise IntegrityError(f"{num_live} choices are live, and {len(self._queues)} are in a queue")

    def _land(self, step: ScheduledStep) -> None:
        if step is not self._in_flight:
            raise InternalError("this step is not the one in flight", reason="STEP_NOT_IN_FLIGHT")
        self._in_flight = None
        self._num_steps += 1

    def _end_prefill(self, sequence: Sequence, now: float) -> None:
        """All known tokens are computed: the next one can be taken in, and other choices can go on from the prompt."""
        sequence.transition(_DECODE)
        self._queues.fork(sequence, now)
        if sequence.first_token_at is None:
            sequence.first_token_at = now

    def _accept(self, sequence: Sequence, token: SampledToken, now: float) -> None:
        """Appends a sampled token and ends or pauses the sequence where it must."""
        sequence.last_token_at = now
        sequence.credit -= 1
        self._num_generated_tokens += 1
        token_id, generated_ids = token.token_id, sequence.generated_ids
        ends = token_id in sequence.end_token_ids and sequence.ends_with(token_id)
        generated_ids.append(token_id)
        if sequence.sampling_state is not None:
            sequence.sampling_state.accept(token)
        if ends:
            self._finish(sequence, FinishReason.STOP, now, stop_token_id=token_id)
            return
        self._events.append(TokenEvent(sequence.request.id, sequence.choice, token))
        if len(generated_ids) == sequence.max_tokens:
            self._finish(sequence, FinishReason.LENGTH, now)
        elif not sequence.credit:
            self._queues.pause(sequence, now)

    def _expire(self, now: float) -> None:
        for request_id in self._requests.expired(now):
            self._finish_request(request_id, FinishReason.DEADLINE, now)
        timeout = self._config.pause_timeout_seconds
        too_long = takewhile(lambda entry: entry[1] + timeout <= now, self._queues.out_of_credit.items())
        for sequence, since in list(too_long):
            message = f"no credit for {now - since:.3g} s; the limit is {timeout:g} s"
            self._finish(sequence, FinishReason.ERROR, now, error=ResourceExhaustedError(message, reason="NO_CREDIT"))

    def _finish_request(
        self, request_id: int, reason: FinishReason, now: float, error: RequestError | None = None
    ) -> bool:
        live = self._requests.get(request_id)
        if live is None:
            return False
        for sequence in live.sequences:
            if sequence.state is not _FINISHED:
                self._finish(sequence, reason, now, error=error)
        return True

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        *,
        stop_token_id: int | None = None,
        num_delivered: int | None = None,
        error: RequestError | None = None,
    ) -> None:
        """Ends a live sequence: frees its blocks, tells so once, and lets go of the request after its last choice."""
        self._queues.discard(sequence)
        request_id, choice = sequence.id
        usage, timings = Usage.of(sequence, num_delivered), Timings.of(sequence, now)
        self._events.append(FinishedEvent(request_id, choice, reason, stop_token_id, error, usage, timings))
        self._requests.mark_finished(request_id)
