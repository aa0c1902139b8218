"""Who asks, what they may ask for, and what they have in flight."""

from __future__ import annotations

from service_common.api_keys import UNLIMITED, KeyLimits
from service_common.errors import PermissionDeniedError, ResourceExhaustedError

_RETRY_SECONDS = 1.0


class Caller:
    """The holder of an API key, over all of its calls to this process. Belongs to the event loop.

    Without a name, whoever may reach a server that asks for no keys.
    """

    def __init__(self, name: str = "", sha256: str = "", limits: KeyLimits = UNLIMITED) -> None:
        self.name, self.sha256, self.limits = name, sha256, limits
        self._num_requests = 0
        self._num_waiting_tokens = 0

    def priority(self, asked: int | None) -> int:
        """The priority of a request that asks for one, or for none. PermissionDeniedError above the key's highest."""
        if asked is None:
            return self.limits.default_priority
        if asked > self.limits.max_priority:
            raise PermissionDeniedError(
                f"params.priority is {asked}; the API key {self.name!r} allows at most {self.limits.max_priority}",
                reason="PRIORITY_NOT_ALLOWED",
                field="params.priority",
            )
        return asked

    def start_request(self) -> None:
        """Counts a request in; `end_requests` counts it out. ResourceExhaustedError at the key's limit."""
        most = self.limits.max_requests
        if most is not None and self._num_requests >= most:
            raise ResourceExhaustedError(
                f"the API key {self.name!r} has {self._num_requests} requests in flight, which is its limit",
                reason="KEY_TOO_MANY_REQUESTS",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._num_requests += 1

    def end_requests(self, count: int) -> None:
        """So many requests have ended."""
        self._num_requests -= count

    def start_waiting(self, num_tokens: int) -> None:
        """Counts a prompt in, which waits for its first token; `end_waiting` counts it out.

        ResourceExhaustedError where the key's prompts would hold more tokens than it may let wait.
        """
        most = self.limits.max_waiting_tokens
        if most is not None and self._num_waiting_tokens + num_tokens > most:
            raise ResourceExhaustedError(
                f"the prompt has {num_tokens} tokens beside {self._num_waiting_tokens} of the API key {self.name!r} "
                f"that wait; at most {most} may",
                reason="KEY_TOO_MANY_TOKENS",
                retry_after_seconds=_RETRY_SECONDS if num_tokens <= most else None,
            )
        self._num_waiting_tokens += num_tokens

    def end_waiting(self, num_tokens: int) -> None:
        """A prompt of so many tokens waits no more."""
        self._num_waiting_tokens -= num_tokens
