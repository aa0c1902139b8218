"""How choices end: what they hold is freed, and their end is told, once."""

from __future__ import annotations

from itertools import takewhile

from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.messages import Event, FinishedEvent, SchedulerConfig, Timings, Usage
from engine_service.scheduling.request_table import RequestTable
from engine_service.scheduling.sequence import FinishReason, Sequence, SequenceState
from engine_service.scheduling.sequence_queues import SequenceQueues
from service_common.errors import RequestError, ResourceExhaustedError


class Endings:
    """Takes sequences out of all that knows them, and appends a FinishedEvent to `events` for each."""

    def __init__(
        self,
        config: SchedulerConfig,
        queues: SequenceQueues,
        requests: RequestTable,
        drafter: Drafter,
        events: list[Event],
    ) -> None:
        self._config, self._queues, self._requests = config, queues, requests
        self._drafter, self._events = drafter, events

    def expire(self, now: float) -> None:
        """Ends what has passed its deadline, or has been without credit for too long."""
        for request_id in self._requests.expired(now):
            self.finish_request(request_id, FinishReason.DEADLINE, now)
        timeout = self._config.pause_timeout_seconds
        too_long = takewhile(lambda entry: entry[1] + timeout <= now, self._queues.out_of_credit.items())
        for sequence, since in list(too_long):
            message = f"no credit for {now - since:.3g} s; the limit is {timeout:g} s"
            self.finish(sequence, FinishReason.ERROR, now, error=ResourceExhaustedError(message, reason="NO_CREDIT"))

    def finish_request(
        self, request_id: int, reason: FinishReason, now: float, error: RequestError | None = None
    ) -> bool:
        """Ends a request's live choices alike. False, and nothing happens, where the request is not live."""
        live = self._requests.get(request_id)
        if live is None:
            return False
        for sequence in live.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self.finish(sequence, reason, now, error=error)
        return True

    def finish(
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
        self._drafter.forget(sequence)
        request_id, choice = sequence.id
        usage, timings = Usage.of(sequence, num_delivered), Timings.of(sequence, now)
        self._events.append(FinishedEvent(request_id, choice, reason, stop_token_id, error, usage, timings))
        self._requests.mark_finished(request_id)
