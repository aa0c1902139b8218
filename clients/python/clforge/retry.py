"""Trying again: only when the server says when, and only before the first token was delivered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from clforge.errors import StatusError
from clforge.events import Delta, Event

_MOST_JITTER = 0.25  # of the delay, so that clients refused together do not come back together

_T = TypeVar("_T")


class Retries:
    """One request's right to be tried again, until `budget_seconds` or its own timeout have passed.

    `timeout_left` is the timeout to send with the next attempt, None for none; `allowed` can end the right earlier.
    """

    def __init__(
        self,
        budget_seconds: float,
        timeout_seconds: float | None = None,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self.timeout_left = timeout_seconds
        self._timeout = timeout_seconds
        self._budget = budget_seconds if timeout_seconds is None else min(budget_seconds, timeout_seconds)
        self._allowed = allowed
        self._started = time.monotonic()

    async def wait(self, error: StatusError) -> None:
        """Returns when the request may be sent again; raises `error` when it may not, or not in time."""
        if error.retry_after_seconds is None or not self._allowed():
            raise error
        delay = error.retry_after_seconds * random.uniform(1.0, 1.0 + _MOST_JITTER)
        passed = time.monotonic() - self._started + delay
        if passed >= self._budget:
            raise error
        await asyncio.sleep(delay)
        if self._timeout is not None:
            self.timeout_left = self._timeout - passed


async def call(attempt: Callable[[], Awaitable[_T]], retries: Retries) -> _T:
    """The first result of `attempt` that is no retryable error."""
    while True:
        try:
            return await attempt()
        except StatusError as error:
            await retries.wait(error)


async def stream(attempt: Callable[[], AsyncGenerator[Event, None]], retries: Retries) -> AsyncGenerator[Event, None]:
    """The events of the first attempt that delivers a token or ends well.

    Accepted of an attempt that failed later has been passed on already: the last Accepted counts.
    """
    while True:
        delivered = False
        try:
            async with aclosing(attempt()) as events:
                async for event in events:
                    delivered = delivered or isinstance(event, Delta)
                    yield event
            return
        except StatusError as error:
            if delivered:
                raise
            await retries.wait(error)
