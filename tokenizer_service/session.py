"""One client stream: its requests, and what it still has to be told.

Checks what a client may say in which order; what the words mean is a Generation's business. A request's failure is told
in-band and leaves its neighbours alone. What breaks the protocol itself ends the stream: a message that says nothing,
and a second submit under the id of a live request, where an in-band answer would look like that request's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from clforge.v1.generation_pb2 import FINISH_REASON_ERROR, Finished, Update
from clforge.v1.tokenizer_pb2 import GenerateTextRequest, TextSubmit
from service_common.callers import Caller
from service_common.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, RequestError
from service_common.outbox import Outbox, split
from service_common.status import to_status
from tokenizer_service.generation import Generation
from tokenizer_service.validation import check_credit

MAX_UNTOLD_REFUSALS = 256  # then nothing more is read until the client reads


class Admission(Protocol):
    """Who decides whether a request may start, and owns what all sessions share."""

    def admit(
        self, submit: TextSubmit, caller: Caller, stream_id: int, outbox: Outbox, on_ended: Callable[[Generation], None]
    ) -> Generation:
        """Starts a request of `caller` on the stream `stream_id`; a RequestError tells why not."""

    def release(self, caller: Caller, num_requests: int) -> None:
        """So many admitted requests of `caller` have ended and their last updates are on their way."""

    async def turn(self) -> None:
        """Returns when this session's stream may be written to."""


class Session:
    """The server's side of one client stream. Belongs to the event loop.

    A request keeps its place until its last update has been taken by the writer, so a client that submits but does not
    read runs into the limit of live requests, not into this process's memory. Refusals hold no place; the client is not
    listened to while many of them are untold.
    """

    def __init__(self, admission: Admission, caller: Caller, stream_id: int) -> None:
        """`stream_id` names the stream: its requests and those of others take turns at the engine."""
        self._admission, self._caller, self._stream_id = admission, caller, stream_id
        self._outbox = Outbox()
        self._requests: dict[int, Generation] = {}
        self._untold: list[Generation] = []
        self._last_id = -1
        self._half_closed = False
        self._num_untold_refusals = 0
        self._room_for_refusals = asyncio.Event()
        self._room_for_refusals.set()

    @property
    def num_requests(self) -> int:
        """Requests that still hold their place."""
        return len(self._requests)

    @property
    def num_encoding_requests(self) -> int:
        """Requests that the engine has not been given yet. Any thread may ask."""
        return sum(generation.is_encoding for generation in tuple(self._requests.values()))

    async def read(self, messages: AsyncIterator[GenerateTextRequest]) -> None:
        """Acts on the client's messages until it stops sending. A RequestError tells how it broke the protocol."""
        try:
            async for message in messages:
                self.receive(message)
                await self._room_for_refusals.wait()
        except RequestError:
            self._outbox.close()
            raise
        self.half_close()

    def receive(self, message: GenerateTextRequest) -> None:
        """Acts on one message."""
        kind = message.WhichOneof("message")
        if kind is None:
            raise InvalidArgumentError("message", "empty", "must be one of submit, credit, cancel, stop")
        if kind == "submit":
            self.submit(message.submit)
            return
        request_id = getattr(message, kind).request_id
        if request_id > self._last_id:
            self._refuse(
                request_id,
                NotFoundError(
                    f"request_id {request_id} was never submitted on this stream",
                    reason="UNKNOWN_REQUEST",
                    field=f"{kind}.request_id",
                ),
            )
            return
        generation = self._requests.get(request_id)
        if generation is not None and not generation.ended:
            self._steer(generation, message)

    def submit(self, submit: TextSubmit) -> None:
        """Starts a request; whatever is wrong with it is told in-band."""
        request_id = submit.request_id
        if request_id <= self._last_id:
            error = AlreadyExistsError(
                f"request_id {request_id} is not above {self._last_id}, the last one of this stream",
                reason="REQUEST_ID_USED",
                field="submit.request_id",
            )
            if request_id in self._requests:
                raise error
            self._refuse(request_id, error)
            return
        self._last_id = request_id
        try:
            self._requests[request_id] = self._admission.admit(
                submit, self._caller, self._stream_id, self._outbox, self._ended
            )
        except RequestError as error:
            self._refuse(request_id, error)

    def half_close(self) -> None:
        """The client says no more; the stream ends with its last request."""
        self._half_closed = True
        self._close_if_done()

    def drain(self) -> None:
        """Nothing new will be admitted: as `half_close`."""
        self.half_close()

    def cancel_all(self) -> None:
        """Ends all requests with CANCELLED."""
        for generation in self._live():
            generation.cancel()

    def abandon(self) -> None:
        """The client is gone: ends all requests in silence. May be called twice."""
        for generation in self._live():
            generation.abandon()
        self._admission.release(self._caller, len(self._requests))
        self._requests.clear()
        self._untold.clear()
        self._outbox.close()

    async def batches(self) -> AsyncIterator[list[Update]]:
        """What to tell the client, in messages of about MAX_BATCH_BYTES at most, until the stream is done."""
        async for updates in self._outbox.batches(self._admission.turn):
            told, self._untold = self._untold, []
            for generation in told:
                del self._requests[generation.request_id]
            self._admission.release(self._caller, len(told))
            self._num_untold_refusals = 0
            self._room_for_refusals.set()
            for part in split(updates):
                yield part

    def _steer(self, generation: Generation, message: GenerateTextRequest) -> None:
        try:
            match message.WhichOneof("message"):
                case "credit":
                    check_credit(message.credit.tokens)
                    generation.grant(message.credit.tokens)
                case "cancel":
                    generation.cancel()
                case "stop":
                    generation.stop(message.stop.choice, message.stop.num_delivered_tokens)
        except RequestError as error:
            generation.fail(error)

    def _refuse(self, request_id: int, error: RequestError) -> None:
        self._num_untold_refusals += 1
        if self._num_untold_refusals >= MAX_UNTOLD_REFUSALS:
            self._room_for_refusals.clear()
        self._outbox.finished(request_id, 0, Finished(reason=FINISH_REASON_ERROR, error=to_status(error)))

    def _ended(self, generation: Generation) -> None:
        self._untold.append(generation)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._half_closed and not self._live():
            self._outbox.close()

    def _live(self) -> list[Generation]:
        return [generation for generation in self._requests.values() if not generation.ended]
