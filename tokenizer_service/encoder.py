"""Text to token ids without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

INLINE_CHARACTERS = (
    8192  # about a millisecond of encoding; a thread costs a tenth of that, but also its turn in the queue
)


class Encoder:
    """One thread for large texts; small ones are done at once, on the caller's."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    async def run(self, work: Callable[[], T], num_characters: int) -> T:
        """The result of `work`, which handles so many characters of text."""
        if num_characters <= INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Drops what waits; what runs is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
