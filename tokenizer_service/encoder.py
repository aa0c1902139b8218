"""Text to token ids without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service_common.errors import ResourceExhaustedError

T = TypeVar("T")

INLINE_CHARACTERS = (
    8192  # about a millisecond of encoding; a thread costs a tenth of that, but also its turn in the queue
)
HUGE_CHARACTERS = 1 << 18  # some tenths of a second of encoding, for which prompts of usual size shall not wait
MAX_WAITING_CHARACTERS = 1 << 25  # in each queue: what it takes to encode them is as long as a caller may want to wait


class Encoder:
    """Small texts are done at once, on the caller's thread; large ones and huge ones each have a thread and a queue.

    So a text only ever waits for those of its own kind. What waits is bounded, and work whose caller gives up before
    its turn, because of a deadline or of a client that left, is never done. Belongs to the event loop.
    """

    def __init__(self, *, max_waiting_characters: int = MAX_WAITING_CHARACTERS) -> None:
        self._large = _Queue("encoder", max_waiting_characters)
        self._huge = _Queue("encoder-huge", max_waiting_characters)

    @property
    def num_waiting_characters(self) -> int:
        """Characters of the texts that wait for a thread. Any thread may ask."""
        return self._large.num_waiting_characters + self._huge.num_waiting_characters

    async def run(self, work: Callable[[], T], num_characters: int) -> T:
        """The result of `work`, which handles so many characters of text.

        ResourceExhaustedError where it would have to wait and too much waits already.
        """
        if num_characters <= INLINE_CHARACTERS:
            return work()
        queue = self._large if num_characters <= HUGE_CHARACTERS else self._huge
        return await queue.run(work, num_characters)

    def close(self) -> None:
        """Drops what waits; what runs is not waited for."""
        self._large.close()
        self._huge.close()


class _Queue:
    """One thread, and who waits for it, in order of arrival."""

    def __init__(self, name: str, max_waiting_characters: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._free = asyncio.Semaphore(1)
        self._max_waiting_characters = max_waiting_characters
        self.num_waiting_characters = 0

    async def run(self, work: Callable[[], T], num_characters: int) -> T:
        if self._free.locked():
            self._check_room(num_characters)
        self.num_waiting_characters += num_characters
        try:
            await self._free.acquire()
        finally:
            self.num_waiting_characters -= num_characters
        # The thread cannot be stopped: while it works for a caller that has gone, it is not free for the next one.
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check_room(self, num_characters: int) -> None:
        if self.num_waiting_characters + num_characters > self._max_waiting_characters:
            raise ResourceExhaustedError(
                f"{self.num_waiting_characters} characters of text wait to be encoded; {num_characters} more would be "
                f"above the limit, which is {self._max_waiting_characters}; try again in 1 s",
                reason="TOO_MUCH_TEXT",
                retry_after_seconds=1.0,
            )

    def _ended(self, running: asyncio.Future[T]) -> None:
        self._free.release()
        if not running.cancelled():
            running.exception()  # seen, so that asyncio does not report it where the caller has gone
