"""What bounds the memory of a session: credits for what the server may send, and a queue for what we still have to."""

from __future__ import annotations

import asyncio
from collections import deque

from clforge.v1.tokenizer_pb2 import GenerateTextRequest


class CreditWindow:
    """Decides when to grant a request more tokens, so that no choice ever has more than `window` unread ones.

    A grant counts for every choice alike, so the choice that was read least decides; choices that have ended do not
    count. A grant is at least half a window: few messages, and a reader that keeps up never keeps the server waiting.
    """

    def __init__(self, window: int, num_choices: int) -> None:
        self._window = window
        self._granted = window
        self._read = dict.fromkeys(range(num_choices), 0)

    def read(self, choice: int, num_tokens: int) -> int:
        """Notes that tokens of a choice were read; returns how many to grant now, 0 for none yet."""
        self._read[choice] = self._read.get(choice, 0) + num_tokens
        return self._due()

    def finished(self, choice: int) -> int:
        """Notes the end of a choice; returns how many tokens to grant to the others now."""
        self._read.pop(choice, None)
        return self._due()

    def _due(self) -> int:
        if not self._read:
            return 0
        tokens = min(self._read.values()) + self._window - self._granted
        if 2 * tokens < self._window:
            return 0
        self._granted += tokens
        return tokens


class Outgoing:
    """Messages for one stream, in order. Small ones are put at once; who puts large ones first waits for room.

    So that leaving an iterator, which sends a Cancel, never waits for a server that does not read.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[GenerateTextRequest] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    async def room(self) -> None:
        """Returns when fewer than `limit` messages wait, or none will be sent any more."""
        while len(self._messages) >= self._limit and not self._closed:
            await self._change()

    def put(self, message: GenerateTextRequest) -> None:
        """Adds a message."""
        self._messages.append(message)
        self._wake()

    async def get(self) -> GenerateTextRequest | None:
        """The next message; None when the queue was closed and all are gone."""
        while not self._messages:
            if self._closed:
                return None
            await self._change()
        message = self._messages.popleft()
        self._wake()
        return message

    def close(self) -> None:
        """No message will be put any more."""
        self._closed = True
        self._wake()

    async def _change(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
