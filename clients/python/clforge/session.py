"""Many requests on one stream.

A Session owns one GenerateText call and two tasks: one writes what is outgoing, one reads and hands each update to its
request. What a request has not read yet is bounded by its credit, which is granted as its reader reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc

from clforge import retry
from clforge.errors import ClforgeError, ConnectionLostError, from_rpc_error, invalid
from clforge.events import Delta, Event, Finished
from clforge.fields import check_size
from clforge.flow_control import CreditWindow, Outgoing
from clforge.params import Params, Prompt, model_name, num_choices, params_to_proto, prompt_to_proto, set_timeout
from clforge.tls import Metadata
from clforge.updates import UpdateReader
from clforge.v1 import generation_pb2, tokenizer_pb2
from clforge.v1.tokenizer_pb2 import GenerateTextRequest

if TYPE_CHECKING:
    from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub

_MAX_UNSENT_MESSAGES = 64
_GOODBYE_SECONDS = 1.0
_MAX_WINDOW = 1 << 30


class Request:
    """One request of a session: iterate over it, once, for its events. Leaving the loop cancels it."""

    def __init__(self, session: Session, request_id: int, num_choices: int, window: int) -> None:
        self.request_id = request_id
        self._session = session
        self._num_running = num_choices
        self._updates = UpdateReader(num_choices)
        self._credits = CreditWindow(window, num_choices)
        self._arrived: asyncio.Queue[generation_pb2.Update | ClforgeError] = asyncio.Queue()

    def cancel(self) -> None:
        """Asks the server to end the request; its events then end with Finished(CANCELLED), unless it ended before."""
        self._session._send(GenerateTextRequest(cancel=generation_pb2.Cancel(request_id=self.request_id)))

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.events()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The request's events, until each choice has finished. Raises the error of a choice that failed."""
        try:
            while not self._updates.done:
                arrived = await self._arrived.get()
                if isinstance(arrived, ClforgeError):
                    raise arrived
                event = self._updates.read(arrived)
                yield event
                self._grant_after(event)
        finally:
            self._session._forget(self)
            if self._num_running:
                self.cancel()

    def _arrive(self, arrived: generation_pb2.Update | ClforgeError) -> None:
        self._arrived.put_nowait(arrived)
        if isinstance(arrived, generation_pb2.Update) and arrived.WhichOneof("event") == "finished":
            self._num_running -= 1
            if not self._num_running:
                self._session._forget(self)

    def _grant_after(self, event: Event) -> None:
        tokens = 0
        if isinstance(event, Delta):
            tokens = self._credits.read(event.choice, event.num_tokens)
        elif isinstance(event, Finished):
            tokens = self._credits.finished(event.choice)
        if tokens:
            credit = generation_pb2.Credit(request_id=self.request_id, tokens=tokens)
            self._session._send(GenerateTextRequest(credit=credit))


class Session:
    """Many requests on one stream; from `Client.session`. Leaving the `async with` block cancels those still running.

    Any number of tasks of one event loop may use it. When the stream ends early, every request raises the reason, and
    so does every later `submit`: open a new session then.
    """

    def __init__(
        self, stub: TokenizerServiceAsyncStub, metadata: Metadata, target: str, window: int, retry_seconds: float
    ) -> None:
        if not isinstance(window, int) or not 1 <= window <= _MAX_WINDOW:
            raise invalid("window", window, f"must be 1 to {_MAX_WINDOW} tokens")
        self._stub, self._metadata, self._target = stub, metadata, target
        self._window, self._retry_seconds = window, retry_seconds
        self._requests: dict[int, Request] = {}
        self._last_request_id = 0
        self._outgoing = Outgoing(_MAX_UNSENT_MESSAGES)
        self._failure: ClforgeError | None = None

    async def __aenter__(self) -> Self:
        self._call = self._stub.GenerateText(metadata=self._metadata)
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        idle = not self._requests
        self._end(ConnectionLostError(self._target, "this session was left"))
        await asyncio.wait(self._tasks, timeout=_GOODBYE_SECONDS if idle else 0)
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def generate(self, prompt: Prompt, **params: Unpack[Params]) -> AsyncGenerator[Event, None]:
        """Like `Client.generate`, on this session's stream."""
        submit = _submit_message(prompt, params, self._window)
        retries = retry.Retries(self._retry_seconds, params.get("timeout"), allowed=lambda: self._failure is None)

        async def attempt() -> AsyncGenerator[Event, None]:
            set_timeout(submit.params, retries.timeout_left)
            request = await self._start(submit)
            async with contextlib.aclosing(request.events()) as events:
                async for event in events:
                    yield event

        return retry.stream(attempt, retries)

    async def submit(self, prompt: Prompt, **params: Unpack[Params]) -> Request:
        """Starts a request without reading or retrying it. Parameters as for `generate`."""
        return await self._start(_submit_message(prompt, params, self._window))

    async def _start(self, submit: tokenizer_pb2.TextSubmit) -> Request:
        """Sends `submit` under a new id. Ids must reach the server in order: none is taken before there is room."""
        await self._outgoing.room()
        if self._failure is not None:
            raise self._failure
        self._last_request_id += 1
        submit.request_id = self._last_request_id
        request = Request(self, submit.request_id, num_choices(submit.params), self._window)
        self._requests[submit.request_id] = request
        self._send(GenerateTextRequest(submit=submit))
        return request

    def _send(self, message: GenerateTextRequest) -> None:
        if self._failure is None:
            self._outgoing.put(message)

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.request_id, None)

    async def _write(self) -> None:
        # A write that fails tells nothing: the reader learns why the stream ended.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (message := await self._outgoing.get()) is not None:
                await self._call.write(message)
            await self._call.done_writing()

    async def _read(self) -> None:
        answered = False
        reason: ClforgeError = ConnectionLostError(self._target, "the server ended the stream")
        try:
            async for response in self._call:
                answered = True
                for update in response.updates:
                    if update.request_id in self._requests:
                        self._requests[update.request_id]._arrive(update)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error, self._target, answered=answered)
        finally:
            self._end(reason)

    def _end(self, reason: ClforgeError) -> None:
        """Fails what still runs, and all that comes later, with `reason`; the first reason counts."""
        self._failure = self._failure or reason
        for request in self._requests.values():
            request._arrive(self._failure)
        self._requests.clear()
        self._outgoing.close()


def _submit_message(prompt: Prompt, params: Params, window: int) -> tokenizer_pb2.TextSubmit:
    generation = params_to_proto(params)
    generation.initial_credit = window
    submit = tokenizer_pb2.TextSubmit(prompt=prompt_to_proto(prompt), params=generation, model=model_name(params))
    return check_size(submit, "prompt")
