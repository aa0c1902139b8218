"""The live requests: which exist, which still wait for their first step, when they expire."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from math import inf
from typing import Final

from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.messages import RequestInfo
from engine_service.scheduling.queue_limits import QueueLimits
from engine_service.scheduling.sequence import Request, Sequence, SequenceState
from engine_service.scheduling.sorted_queue import SortedQueue
from engine_service.scheduling.stats import RequestCounts
from service_common.errors import AlreadyExistsError

# From the least to the most advanced: what a request with several choices is said to be.
_ADVANCE: Final = {
    SequenceState.FINISHED: 0,
    SequenceState.QUEUED: 1,
    SequenceState.PREEMPTED: 2,
    SequenceState.PAUSED: 3,
    SequenceState.PREFILL: 4,
    SequenceState.DECODE: 5,
}


class LiveRequest:
    """A request of which at least one choice is alive."""

    __slots__ = ("num_live", "request", "sequences", "started")

    def __init__(self, request: Request, sequences: tuple[Sequence, ...]) -> None:
        self.request = request
        self.sequences = sequences
        self.num_live = len(sequences)
        self.started = False

    @property
    def state(self) -> SequenceState:
        """The state of its most advanced choice."""
        if len(self.sequences) == 1:
            return self.sequences[0].state
        return max((sequence.state for sequence in self.sequences), key=_ADVANCE.__getitem__)

    def info(self, now: float) -> RequestInfo:
        """Its figures."""
        return RequestInfo(
            request_id=self.request.id,
            state=self.state,
            num_prompt_tokens=len(self.request.prompt_ids),
            num_generated_tokens=sum(sequence.num_generated for sequence in self.sequences),
            num_blocks=sum(len(sequence.block_table) for sequence in self.sequences),
            priority=self.request.priority,
            age_seconds=now - self.request.arrival,
        )


def _deadline(live: LiveRequest) -> float:
    return inf if live.request.deadline is None else live.request.deadline


def _expiry(live: LiveRequest) -> tuple[float, int]:
    return _deadline(live), live.request.id


class RequestTable:
    """Owns the live requests. A request leaves when its last choice has ended, and nothing of it stays behind."""

    def __init__(self, queue: QueueLimits) -> None:
        self._queue = queue
        self._requests: dict[int, LiveRequest] = {}
        self._deadlines: SortedQueue[LiveRequest] = SortedQueue(_expiry)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[LiveRequest]:
        """Oldest first, in the order in which they were added."""
        return iter(self._requests.values())

    def get(self, request_id: int) -> LiveRequest | None:
        """The request, if it is live."""
        return self._requests.get(request_id)

    def check_new(self, request_id: int) -> None:
        """Raises AlreadyExistsError for the id of a live request."""
        if request_id in self._requests:
            message = f"request {request_id} is already live"
            raise AlreadyExistsError(message, reason="DUPLICATE_REQUEST", field="request_id")

    def add(self, live: LiveRequest) -> None:
        """Puts in a request that has entered the queue, where it counts until `mark_started`."""
        self._requests[live.request.id] = live
        if live.request.deadline is not None:
            self._deadlines.add(live)

    def mark_started(self, request_id: int) -> None:
        """A choice of the request goes into its first step; the request is no longer queued."""
        live = self._requests[request_id]
        if not live.started:
            live.started = True
            self._queue.leave(request_id)

    def mark_finished(self, request_id: int) -> None:
        """A choice of the request has ended; with the last one the request leaves."""
        live = self._requests[request_id]
        live.num_live -= 1
        if live.num_live:
            return
        del self._requests[request_id]
        if not live.started:
            self._queue.leave(request_id)
        if live.request.deadline is not None:
            self._deadlines.remove(live)

    def expired(self, now: float) -> list[int]:
        """Ids of the requests whose deadline has come, earliest first."""
        return [live.request.id for live in takewhile(lambda live: _deadline(live) <= now, self._deadlines)]

    def next_deadline(self) -> float | None:
        """The earliest deadline of a live request, if any has one."""
        return _deadline(self._deadlines.first) if self._deadlines else None

    def count_by_place(self) -> RequestCounts:
        """How many requests run, wait and are paused; O(live choices)."""
        num_waiting = num_waiting_tokens = num_paused = 0
        for live in self:
            state = live.state
            if state is SequenceState.PAUSED:
                num_paused += 1
            elif state is SequenceState.QUEUED or state is SequenceState.PREEMPTED:
                num_waiting += 1
                num_waiting_tokens += len(live.request.prompt_ids)
        return RequestCounts(len(self) - num_waiting - num_paused, num_waiting, num_paused, num_waiting_tokens)

    def check_integrity(self) -> None:
        """Raises IntegrityError where counts and requests do not match; O(live choices)."""
        self._queue.check_integrity(
            {live.request.id: len(live.request.prompt_ids) for live in self if not live.started}
        )
        for live in self:
            num_live = sum(sequence.state is not SequenceState.FINISHED for sequence in live.sequences)
            if live.num_live != num_live or num_live == 0:
                message = f"request {live.request.id} counts {live.num_live} live choices and has {num_live}"
                raise IntegrityError(message)
        with_deadline = {live for live in self if live.request.deadline is not None}
        if set(self._deadlines) != with_deadline:
            raise IntegrityError("the queue of deadlines does not hold the live requests that have one")
        self._deadlines.check_integrity()
