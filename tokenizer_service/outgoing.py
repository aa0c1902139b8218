"""What the engine has still to be told on its one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from clforge.v1.engine_pb2 import GenerateTokensRequest, TokenSubmit
from clforge.v1.generation_pb2 import Cancel, Credit, Stop

_Key = tuple[str, int, int]  # kind, request id, choice


class Outgoing:
    """Messages in the order of their first mention, at most one of a kind for a request or choice.

    Credits for one request are added up while they wait, so what is held is bounded by the live requests however late
    the engine reads. Belongs to the event loop's thread.
    """

    def __init__(self) -> None:
        self._waiting: dict[_Key, GenerateTokensRequest] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, submit: TokenSubmit) -> None:
        """Starts a request."""
        self._put(("submit", submit.request_id, 0), GenerateTokensRequest(submit=submit))

    def credit(self, request_id: int, tokens: int) -> None:
        """Allows more tokens."""
        message = self._waiting.get(("credit", request_id, 0))
        if message is not None:
            message.credit.tokens += tokens
        else:
            credit = Credit(request_id=request_id, tokens=tokens)
            self._put(("credit", request_id, 0), GenerateTokensRequest(credit=credit))

    def stop(self, request_id: int, choice: int, num_delivered_tokens: int) -> None:
        """Ends a choice at a length."""
        stop = Stop(request_id=request_id, choice=choice, num_delivered_tokens=num_delivered_tokens)
        self._put(("stop", request_id, choice), GenerateTokensRequest(stop=stop))

    def cancel(self, request_id: int) -> None:
        """Ends a request; its terminal updates are still wanted."""
        self._put(("cancel", request_id, 0), GenerateTokensRequest(cancel=Cancel(request_id=request_id)))

    def abandon(self, request_id: int) -> None:
        """Ends a request that nobody waits for; one that the engine has not been told of is forgotten."""
        told = ("submit", request_id, 0) not in self._waiting
        for key in [key for key in self._waiting if key[1] == request_id]:
            del self._waiting[key]
        if told:
            self.cancel(request_id)

    def clear(self) -> None:
        """Forgets everything: the stream it was meant for is gone."""
        self._waiting.clear()

    async def messages(self) -> AsyncIterator[GenerateTokensRequest]:
        """Every message, as soon as it is there, without end. One consumer."""
        while True:
            while self._waiting:
                yield self._waiting.pop(next(iter(self._waiting)))
            self._changed.clear()
            await self._changed.wait()

    def _put(self, key: _Key, message: GenerateTokensRequest) -> None:
        self._waiting[key] = message
        self._changed.set()
