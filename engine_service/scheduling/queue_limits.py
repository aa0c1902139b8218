"""How much may wait for its first step. The one part of the scheduler that any thread may ask."""

from __future__ import annotations

import threading

from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.messages import SchedulerConfig
from engine_service.scheduling.sequence import Request
from service_common.errors import ResourceExhaustedError


class QueueLimits:
    """The requests that wait, and their prompt tokens; both are limited, and what is too much is refused at once.

    Thread-safe, so that a refusal need not wait for the step in flight.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._num_tokens_of: dict[int, int] = {}
        self._num_tokens = 0

    def enter(self, request: Request) -> None:
        """Counts a request as waiting; nothing happens where it is counted already.

        ResourceExhaustedError, with the time after which to try again, where that exceeds a limit.
        """
        config, num_tokens = self._config, len(request.prompt_ids)
        with self._lock:
            if request.id in self._num_tokens_of:
                return
            if len(self._num_tokens_of) >= config.max_queued_requests:
                raise self._full(f"{len(self._num_tokens_of)} requests wait, which is the limit")
            if self._num_tokens + num_tokens > config.max_queued_tokens:
                waiting = f"{self._num_tokens} prompt tokens wait and this request has {num_tokens}"
                raise self._full(f"{waiting}; the limit is {config.max_queued_tokens}")
            self._num_tokens_of[request.id] = num_tokens
            self._num_tokens += num_tokens

    def leave(self, request_id: int) -> None:
        """The request waits no more: it runs, or it has ended. Nothing happens where it is not counted."""
        with self._lock:
            self._num_tokens -= self._num_tokens_of.pop(request_id, 0)

    def check_integrity(self, num_tokens_of: dict[int, int]) -> None:
        """Raises IntegrityError unless all of these are counted, by request id and tokens, and the sum is right."""
        with self._lock:
            if not num_tokens_of.items() <= self._num_tokens_of.items():
                raise IntegrityError(f"not all that wait are counted: {num_tokens_of} and {self._num_tokens_of}")
            if self._num_tokens != sum(self._num_tokens_of.values()):
                raise IntegrityError(f"{self._num_tokens} tokens are counted as waiting: {self._num_tokens_of}")

    def _full(self, message: str) -> ResourceExhaustedError:
        seconds = self._config.retry_after_seconds
        return ResourceExhaustedError(
            f"{message}; try again in {seconds:g} s", reason="QUEUE_FULL", retry_after_seconds=seconds
        )
