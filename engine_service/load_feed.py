"""The load, for all who watch it: told when it changes, at least once a second, at most ten times a second.

The engine is asked only after it has done something, and at most ten times a second however many watch. Nothing queues
up for a watcher that reads slowly: it hears the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf

from clforge.v1.generation_pb2 import Load

MIN_INTERVAL_SECONDS = 0.1
MAX_INTERVAL_SECONDS = 0.9  # so that a second is kept


class LoadFeed:
    """Belongs to the event loop's thread, but for `changed`."""

    def __init__(self, ask: Callable[[], Awaitable[Load]]) -> None:
        """`ask` gets the load from the engine."""
        self._ask = ask
        self._event_loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Load] | None = None
        self._next_question = -inf  # not before then
        self._stale = True  # whether the load may differ from the answer
        self._woken = asyncio.Event()
        self._closed = False

    def changed(self) -> None:
        """The engine has done something. Any thread may call; only the first call after an answer costs anything."""
        if not self._stale:
            self._stale = True
            with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody watches
                self._event_loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Ends every `watch`, within MIN_INTERVAL_SECONDS."""
        self._closed = True
        self._wake()

    async def watch(self) -> AsyncIterator[Load]:
        """The load now, and as this module's head says from then on, until `close`."""
        told: Load | None = None
        deadline = inf  # by when something must be told
        seen: asyncio.Future[Load] | None = None
        while not self._closed:
            answer = self._latest_answer()
            await asyncio.wait([answer], timeout=None if told is None else max(0.0, deadline - time.monotonic()))
            if told is None or answer.done():
                seen, load = answer, answer.result()
            else:
                load = told  # a step takes long, and the engine answers after it
            now = time.monotonic()
            if load != told or now >= deadline:
                yield load
                told, deadline = load, now + MAX_INTERVAL_SECONDS
            await asyncio.sleep(MIN_INTERVAL_SECONDS)
            await self._until_news(seen, deadline)

    def _latest_answer(self) -> asyncio.Future[Load]:
        """What the engine has answered or will; asks again where that may be out of date."""
        now = time.monotonic()
        if self._answer is None or (self._stale and self._answer.done() and now >= self._next_question):
            self._stale, self._next_question = False, now + MIN_INTERVAL_SECONDS
            self._answer = asyncio.ensure_future(self._ask())
        return self._answer

    async def _until_news(self, seen: asyncio.Future[Load] | None, deadline: float) -> None:
        """Returns when there may be something else than `seen`, or at the deadline."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                while self._answer is seen and not (self._stale or self._closed):
                    await self._woken.wait()

    def _wake(self) -> None:
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()
