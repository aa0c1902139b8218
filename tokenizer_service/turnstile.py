"""Lets few writers through in each turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """Bounds how many callers of `turn` go on within one turn of the event loop; the others wait in order of arrival.

    An RPC takes several turns to be answered and waits in each for all that the loop has to do in it, which without a
    bound is to write to every stream that has news. Belongs to the event loop.
    """

    def __init__(self, width: int) -> None:
        """`width` callers pass per turn, at least 1."""
        self._width = width
        self._num_passed = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Returns when it is the caller's turn; at once where few have passed."""
        if self._num_passed < self._width and not self._waiting:
            self._pass()
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _pass(self) -> None:
        if self._num_passed == 0:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._num_passed += 1

    def _next_turn(self) -> None:
        self._num_passed = 0
        while self._waiting and self._num_passed < self._width:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._pass()
