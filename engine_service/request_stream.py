"""One GenerateTokens stream: its live requests, and what it still has to send. Belongs to the event loop's thread.

Checks what a client may say in which order; what the words mean is the engine's business. A request's failure is told
in-band, as its terminal update, and leaves its neighbours alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from clforge.v1.engine_pb2 import GenerateTokensRequest, TokenSubmit
from clforge.v1.generation_pb2 import FINISH_REASON_ERROR, Finished
from engine_service.request_registry import RequestRegistry, ServedRequest
from service_common.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, RequestError
from service_common.outbox import Outbox
from service_common.status import to_status

MAX_UNSENT_UPDATES = 4096  # then nothing more is read until the client reads


class RequestStream:
    """The server's side of one stream."""

    def __init__(self, registry: RequestRegistry) -> None:
        self._registry = registry
        self._live: dict[int, ServedRequest] = {}
        self._last_id: int | None = None
        self._half_closed = False
        self.stream_id = registry.new_stream_id()
        self.outbox = Outbox()

    async def read(self, requests: AsyncIterator[GenerateTokensRequest]) -> None:
        """Takes in the client's messages until it stops sending; the outbox closes when its last request has ended.

        A client that does not read is not listened to either, so that what it has yet to be told stays bounded.
        """
        try:
            async for request in requests:
                self.receive(request)
                await self.outbox.room(MAX_UNSENT_UPDATES)
        except BaseException:
            self.outbox.close()
            raise
        self._half_closed = True
        self._close_if_done()

    def receive(self, message: GenerateTokensRequest) -> None:
        """Acts on one message; whatever is wrong with it becomes the named request's terminal update, and its end.

        Raises the RequestError that ends the stream for what cannot be told so: a message that names no request, and a
        second Submit for a live one, whose end its terminal update would seem to be.
        """
        kind = message.WhichOneof("message")
        if kind is None:
            raise InvalidArgumentError("message", "empty", "must be one of submit, credit, cancel, stop")
        request_id = getattr(message, kind).request_id
        if kind == "submit" and request_id in self._live:
            raise AlreadyExistsError(f"request_id {request_id} is live on this stream", reason="REQUEST_ID_USED")
        try:
            match kind:
                case "submit":
                    self._submit(message.submit)
                case "credit":
                    if live := self._find(request_id):
                        self._check_tokens(message.credit.tokens)
                        self._registry.grant(live, message.credit.tokens)
                case "cancel":
                    if live := self._find(request_id):
                        self._registry.cancel(live)
                case "stop":
                    if live := self._find(request_id):
                        self._registry.stop(live, message.stop.choice, message.stop.num_delivered_tokens)
        except RequestError as error:
            if live := self._live.get(request_id):
                self._registry.fail(live, error)
            else:
                if kind == "submit":
                    self._registry.refused(error)
                self._refuse(request_id, error)

    def ended(self, live: ServedRequest) -> None:
        """All choices of `live` have had their terminal update."""
        del self._live[live.request_id]
        self._close_if_done()

    def abandon(self) -> None:
        """The reader is gone: cancels what is live; nothing more is delivered."""
        for live in list(self._live.values()):
            self._registry.abandon(live)
        self._live.clear()
        self.outbox.close()

    def _submit(self, submit: TokenSubmit) -> None:
        if self._last_id is not None and submit.request_id <= self._last_id:
            raise AlreadyExistsError(
                f"request_id {submit.request_id} is not above {self._last_id}, the last one of this stream",
                reason="REQUEST_ID_USED",
                field="submit.request_id",
            )
        self._last_id = submit.request_id
        self._live[submit.request_id] = self._registry.submit(submit, self)

    def _find(self, request_id: int) -> ServedRequest | None:
        """The live request, or None for one that has ended: its Credit or Cancel crossed the end."""
        if self._last_id is None or request_id > self._last_id:
            raise NotFoundError(f"request_id {request_id} was never submitted on this stream", reason="UNKNOWN_REQUEST")
        return self._live.get(request_id)

    def _check_tokens(self, tokens: int) -> None:
        if not 1 <= tokens < 1 << 31:
            raise InvalidArgumentError("credit.tokens", tokens, "must be at least 1 and below 2147483648")

    def _refuse(self, request_id: int, error: RequestError) -> None:
        self.outbox.finished(request_id, 0, Finished(reason=FINISH_REASON_ERROR, error=to_status(error)))

    def _close_if_done(self) -> None:
        if self._half_closed and not self._live:
            self.outbox.close()
