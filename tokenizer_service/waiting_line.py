"""Who waits for something that does one text at a time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TypeVar

from service_common.errors import ResourceExhaustedError

T = TypeVar("T")


class WaitingLine:
    """Work in order of arrival, one at a time. What waits is bounded, and work whose caller gives up before its turn is
    never begun. Belongs to the event loop.

    Attributes:
        num_waiting, num_waiting_characters: texts that wait, and their characters. Any thread may ask.
    """

    def __init__(self, purpose: str, *, max_characters: int, max_waiting: int = sys.maxsize) -> None:
        """`purpose` tells users what the texts wait for: to be encoded."""
        self._free = asyncio.Semaphore(1)
        self._purpose = purpose
        self._max_waiting, self._max_characters = max_waiting, max_characters
        self.num_waiting = self.num_waiting_characters = 0

    async def run(self, begin: Callable[[], asyncio.Future[T]], num_characters: int) -> T:
        """The result of the work that `begin` begins, on a text of so many characters.

        ResourceExhaustedError where it would have to wait and too much waits already.
        """
        if self._free.locked():
            self._check_room(num_characters)
        self.num_waiting += 1
        self.num_waiting_characters += num_characters
        try:
            await self._free.acquire()
        finally:
            self.num_waiting -= 1
            self.num_waiting_characters -= num_characters
        # What has begun goes on when its caller leaves, and until then nothing else can begin.
        running = begin()
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _check_room(self, num_characters: int) -> None:
        if self.num_waiting >= self._max_waiting:
            raise ResourceExhaustedError(
                f"{self.num_waiting} texts wait {self._purpose}, which is the limit; try again in 1 s",
                reason="TOO_MANY_REQUESTS",
                retry_after_seconds=1.0,
            )
        if self.num_waiting_characters + num_characters > self._max_characters:
            raise ResourceExhaustedError(
                f"{self.num_waiting_characters} characters of text wait {self._purpose}; {num_characters} more would "
                f"be above the limit, which is {self._max_characters}; try again in 1 s",
                reason="TOO_MUCH_TEXT",
                retry_after_seconds=1.0,
            )

    def _ended(self, running: asyncio.Future[T]) -> None:
        self._free.release()
        if not running.cancelled():
            running.exception()  # seen, so that asyncio does not report it where the caller has gone
