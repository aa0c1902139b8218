"""All client streams: who may start a request, and how the service drains."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator

from clforge.v1.tokenizer_pb2 import TextSubmit
from service_common.callers import Caller
from service_common.errors import RequestError, ResourceExhaustedError, UnavailableError
from service_common.outbox import Outbox
from tokenizer_service.chat_encoder import ChatEncoder
from tokenizer_service.encoder import Encoder
from tokenizer_service.engine_client import EngineLink
from tokenizer_service.generation import Generation
from tokenizer_service.metrics import Counts, TokenizerMetrics
from tokenizer_service.session import Session
from tokenizer_service.turnstile import Turnstile
from tokenizer_service.validation import check_submit

_WRITES_PER_TURN = 8  # streams; 1 to 2 ms of the event loop


class Sessions:
    """Admits requests, counts them, and is the work that a shutdown waits for (lifecycle.Work). For the event loop."""

    def __init__(
        self,
        link: EngineLink,
        encoder: Encoder,
        chat_encoder: ChatEncoder,
        metrics: TokenizerMetrics,
        *,
        max_live_requests: int,
        max_prompt_bytes: int,
    ) -> None:
        self._link, self._encoder, self._chat_encoder, self._metrics = link, encoder, chat_encoder, metrics
        self._max_live_requests, self._max_prompt_bytes = max_live_requests, max_prompt_bytes
        self._sessions: set[Session] = set()
        self._stream_ids = itertools.count(1)
        self._turnstile = Turnstile(_WRITES_PER_TURN)
        self.draining: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_live_requests = 0
        metrics.read_counts(self._counts)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def num_encoding_requests(self) -> int:
        """Requests that the engine has not been given yet. Any thread may ask."""
        return sum(session.num_encoding_requests for session in tuple(self._sessions))

    @contextlib.contextmanager
    def open(self, caller: Caller) -> Iterator[Session]:
        """A session of `caller`, closed at the end of the block. UnavailableError: draining, or without an engine."""
        self._check_serving()
        session = Session(self, caller, next(self._stream_ids))
        self._sessions.add(session)
        self._idle.clear()
        try:
            yield session
        finally:
            self.close(session)

    def close(self, session: Session) -> None:
        """The client of `session` is gone, or has been told everything. May be called twice."""
        self._metrics.abandoned(session.num_requests)
        session.abandon()
        self._sessions.discard(session)
        if not self._sessions:
            self._idle.set()

    async def turn(self) -> None:
        """See session.Admission."""
        await self._turnstile.turn()

    def admit(
        self, submit: TextSubmit, caller: Caller, stream_id: int, outbox: Outbox, on_ended: Callable[[Generation], None]
    ) -> Generation:
        """See session.Admission."""
        try:
            self._check_admissible(submit)
            params = submit.params
            priority = caller.priority(params.priority if params.HasField("priority") else None)
            caller.start_request()
        except RequestError as error:
            self._metrics.refused(error.code)
            raise
        if priority != params.priority:
            params.priority = priority
        self.num_live_requests += 1
        observed = self._metrics.request(outbox)
        return Generation(submit, caller, stream_id, self._link, self._encoder, self._chat_encoder, observed, on_ended)

    def release(self, caller: Caller, num_requests: int) -> None:
        """See session.Admission."""
        caller.end_requests(num_requests)
        self.num_live_requests -= num_requests

    def refuse_new(self) -> None:
        """See lifecycle.Work."""
        if not self.draining.done():
            self.draining.set_result(None)
        for session in self._sessions:
            session.drain()

    def cancel_all(self) -> None:
        """See lifecycle.Work."""
        for session in self._sessions:
            session.cancel_all()

    async def wait_idle(self) -> None:
        """See lifecycle.Work."""
        await self._idle.wait()

    def check_not_draining(self) -> None:
        """Raises UnavailableError once the service is shutting down."""
        if self.draining.done():
            raise UnavailableError("the service is shutting down", reason="DRAINING", retry_after_seconds=1.0)

    def _check_serving(self) -> str:
        """The name of the model that is served."""
        self.check_not_draining()
        return self._link.model_info().name

    def _check_admissible(self, submit: TextSubmit) -> None:
        model = self._check_serving()
        if self.num_live_requests >= self._max_live_requests:
            raise ResourceExhaustedError(
                f"{self.num_live_requests} requests are in flight, which is the limit; try again in 1 s",
                reason="TOO_MANY_REQUESTS",
                retry_after_seconds=1.0,
            )
        check_submit(submit, model_name=model, max_prompt_bytes=self._max_prompt_bytes)

    def _counts(self) -> Counts:
        return Counts(
            num_streams=len(self),
            num_live_requests=self.num_live_requests,
            num_encoding_requests=self.num_encoding_requests,
            num_waiting_messages=self._link.num_waiting_messages,
            num_waiting_characters=self._encoder.num_waiting_characters,
        )
