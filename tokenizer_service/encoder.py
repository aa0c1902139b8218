"""Text to token ids without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tokenizer_service.waiting_line import WaitingLine

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
        return self._large.line.num_waiting_characters + self._huge.line.num_waiting_characters

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
    """One thread, and who waits for it."""

    def __init__(self, name: str, max_waiting_characters: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.line = WaitingLine("to be encoded", max_characters=max_waiting_characters)

    async def run(self, work: Callable[[], T], num_characters: int) -> T:
        loop = asyncio.get_running_loop()
        return await self.line.run(lambda: loop.run_in_executor(self._thread, work), num_characters)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
