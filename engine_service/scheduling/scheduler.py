"""What runs in the next forward pass, and what becomes of its tokens. No OpenCL, no gRPC.

    step = scheduler.schedule()
    events = scheduler.update(step, runner.run(step))

A step holds the newest token of every running sequence, with guesses of what follows where there are (`drafter`), and,
in what is left of its token budget, prefill chunks; beside decode tokens no more of them than keeps the step short
(`prefill_budget`). Who is admitted next, and why nothing
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
from itertools import islice, zip_longest

from engine_service.scheduling.admission import Admission
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.endings import Endings
from engine_service.scheduling.messages import (
    Event,
    FinishedEvent,
    PromptLogprobsEvent,
    RequestInfo,
    ScheduledChunk,
    ScheduledStep,
    SchedulerConfig,
    TokenEvent,
)
from engine_service.scheduling.prefill_budget import PrefillBudget
from engine_service.scheduling.queue_limits import QueueLimits
from engine_service.scheduling.request_table import LiveRequest, RequestTable
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import FinishReason, Request, Sequence, SequenceState
from engine_service.scheduling.sequence_queues import SequenceQueues
from engine_service.scheduling.stats import SchedulerStats
from engine_service.scheduling.step_planner import StepPlanner
from service_common.errors import InternalError, InvalidArgumentError, RequestError

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
        drafter: Drafter | None = None,
    ) -> None:
        """`clock` gives seconds and never goes back; `eog_token_ids` end a sequence unless it ignores them.

        `drafter` makes the drafts; None stands for one that looks them up in what came before.
        """
        self._config = config
        self._blocks = block_manager
        self._clock = clock
        self._admission = Admission(config, block_manager, eog_token_ids)
        self.queue_limits = QueueLimits(config)
        self._requests = RequestTable(self.queue_limits)
        self._queues = SequenceQueues(block_manager)
        self._prefill_budget = PrefillBudget(config.max_step_stretch, config.min_prefill_tokens)
        self._drafter = Drafter() if drafter is None else drafter
        self._events: list[Event] = []
        self._endings = Endings(config, self._queues, self._requests, self._drafter, self._events)
        self._planner = StepPlanner(
            config, block_manager, self._queues, self._requests, self._prefill_budget, self._drafter
        )
        self._in_flight: ScheduledStep | None = None
        self._step_started = 0.0
        self._num_steps = self._num_prompt_tokens = self._num_generated_tokens = 0
        self._num_drafted = self._num_accepted = 0

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
        return self._endings.finish_request(request_id, FinishReason.CANCELLED, self._clock())

    def abort(self, request_id: int, error: RequestError) -> bool:
        """Ends all choices with ERROR. False, and nothing happens, where the request is not live."""
        return self._endings.finish_request(request_id, FinishReason.ERROR, self._clock(), error)

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
            self._endings.finish(sequence, FinishReason.STOP, now, num_delivered=num_delivered)
        else:
            limit = f"the choice has generated {sequence.num_generated} tokens"
            error = InvalidArgumentError("stop.num_delivered_tokens", num_delivered, limit)
            self._endings.finish(sequence, FinishReason.ERROR, now, error=error)
        return True

    def schedule(self) -> ScheduledStep | None:
        """The next step, None where there is nothing to run. First ends what has passed a deadline.

        Changes states and block tables as if the step will run: `update` or `fail` must follow before the next call.
        """
        if self._in_flight is not None:
            raise InternalError("a step is in flight; update or fail comes first", reason="STEP_IN_FLIGHT")
        now = self._clock()
        self._endings.expire(now)
        self._in_flight = self._planner.plan(now)
        self._step_started = now
        return self._in_flight

    def update(self, step: ScheduledStep, sampled_tokens: SequenceOf[SampledToken]) -> list[Event]:
        """Takes in the results of the step in flight: one token per row of logits, in order of chunks.

        Tokens of sequences that ended meanwhile are dropped. Returns all events since the last time.
        """
        if len(sampled_tokens) != step.num_rows:
            message = f"the step has {step.num_rows} rows of logits and {len(sampled_tokens)} tokens came back"
            raise InternalError(message, reason="SAMPLED_TOKENS")
        self._land(step)
        self._blocks.finish_copies()
        now = self._clock()
        num_decode_tokens = step.num_decodes + step.num_drafted
        self._prefill_budget.observe(num_decode_tokens, step.num_tokens - num_decode_tokens, now - self._step_started)
        tokens = iter(sampled_tokens)
        for chunk in step.chunks:
            chunk_tokens = list(islice(tokens, chunk.num_rows))
            if chunk.sequence.state is not _FINISHED:
                self._take_in(chunk, chunk_tokens, now)
        return self.take_events()

    def fail(self, step: ScheduledStep, error: RequestError) -> list[Event]:
        """The step in flight failed: ends its sequences with ERROR, others go on. Returns events as `update` does."""
        self._land(step)
        now = self._clock()
        for chunk in step.chunks:
            if chunk.sequence.state is not _FINISHED:
                self._endings.finish(chunk.sequence, FinishReason.ERROR, now, error=error)
        self._blocks.finish_copies()
        return self.take_events()

    def take_events(self) -> list[Event]:
        """All events since the last time."""
        events = list(self._events)
        self._events.clear()
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
            drafted_tokens=self._num_drafted,
            accepted_tokens=self._num_accepted,
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
        if len(self._drafter) > num_live:
            raise IntegrityError(f"{num_live} choices are live, and {len(self._drafter)} have drafts")

    def _land(self, step: ScheduledStep) -> None:
        if step is not self._in_flight:
            raise InternalError("this step is not the one in flight", reason="STEP_NOT_IN_FLIGHT")
        self._in_flight = None
        self._num_steps += 1

    def _take_in(self, chunk: ScheduledChunk, tokens: list[SampledToken], now: float) -> None:
        sequence, draft_ids = chunk.sequence, chunk.draft_ids
        num_known = chunk.num_tokens - len(draft_ids)
        self._advance(sequence, num_known)
        if sequence.state is _PREFILL:
            self._num_prompt_tokens += num_known
            tokens = self._score(sequence, tokens)
            if tokens:
                self._end_prefill(sequence, now)
        if draft_ids:
            self._verify(sequence, draft_ids, tokens, now)
        elif tokens:
            self._accept(sequence, tokens[0], now)

    def _score(self, sequence: Sequence, tokens: list[SampledToken]) -> list[SampledToken]:
        """Reports those of `tokens` that are the prompt's own, with their log-probabilities; returns the others."""
        num_scores = min(len(tokens), sequence.num_prompt_tokens - sequence.num_scored)
        if num_scores:
            sequence.num_scored += num_scores
            self._events.append(PromptLogprobsEvent(*sequence.id, tuple(tokens[:num_scores])))
        return tokens[num_scores:]

    def _advance(self, sequence: Sequence, num_tokens: int) -> None:
        """K and V of so many more known tokens are in the sequence's blocks; whole blocks go into the prefix cache."""
        sequence.num_computed += num_tokens
        if sequence.num_computed % self._blocks.block_size < num_tokens:
            self._blocks.commit(sequence)

    def _verify(self, sequence: Sequence, draft_ids: tuple[int, ...], tokens: list[SampledToken], now: float) -> None:
        """Takes in the token sampled after the newest one, and while it is the draft's the one sampled after that.

        So a token of the draft counts as computed once it is known; what was written behind those is never read.
        """
        num_accepted = 0
        sequence.num_drafted += len(draft_ids)
        self._num_drafted += len(draft_ids)
        for token, draft_id in zip_longest(tokens, draft_ids):
            is_accepted = token.token_id == draft_id
            num_accepted += is_accepted
            sequence.num_accepted += is_accepted
            self._accept(sequence, token, now)
            if not is_accepted or sequence.state is not _DECODE:
                break
            self._advance(sequence, 1)
        self._num_accepted += num_accepted
        self._drafter.observe(sequence, len(draft_ids), num_accepted)

    def _end_prefill(self, sequence: Sequence, now: float) -> None:
        """All known tokens are computed: the next one can be taken in, and other choices can go on from the prompt."""
        sequence.transition(_DECODE)
        self._queues.fork(sequence, now)
        if sequence.first_token_at is None:
            sequence.first_token_at = now

    def _accept(self, sequence: Sequence, token: SampledToken, now: float) -> None:
        """Appends a sampled token and ends or pauses the sequence where it must."""
        constraint = sequence.constraint
        if constraint is not None and constraint.error is not None:
            self._endings.finish(sequence, FinishReason.ERROR, now, error=constraint.error)
            return
        sequence.last_token_at = now
        sequence.credit -= 1
        self._num_generated_tokens += 1
        token_id, generated_ids = token.token_id, sequence.generated_ids
        ends = token_id in sequence.end_token_ids and sequence.ends_with(token_id)
        generated_ids.append(token_id)
        if sequence.sampling_state is not None:
            sequence.sampling_state.accept(token)
        if ends:
            self._endings.finish(sequence, FinishReason.STOP, now, stop_token_id=token_id)
            return
        self._events.append(TokenEvent(sequence.request.id, sequence.choice, token))
        if constraint is not None and not constraint.accept(token_id):
            reason = FinishReason.STOP if constraint.error is None else FinishReason.ERROR
            self._endings.finish(sequence, reason, now, error=constraint.error)
        elif len(generated_ids) == sequence.max_tokens:
            self._endings.finish(sequence, FinishReason.LENGTH, now)
        elif not sequence.credit:
            self._queues.pause(sequence, now)
