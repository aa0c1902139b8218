"""The service's live requests: who asked, under which names, and where their events go.

Between the streams, which speak for clients, and the engine loop, which speaks for the device. An entry lives from its
admission to the terminal update of its last choice, or until its reader is gone. Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from clforge.v1.engine_pb2 import TokenSubmit
from clforge.v1.generation_pb2 import FINISH_REASON_ERROR, Accepted, Finished
from engine_service.constraints.compiler import GrammarCompiler
from engine_service.constraints.spec import ConstraintSpec
from engine_service.conversion import to_constraint, to_delta, to_finished, to_prompt_delta, to_request
from engine_service.engine import AdmittedEvent, EngineEvent, RefusedEvent
from engine_service.engine_loop import Command, EngineLoop
from engine_service.metrics import EngineMetrics
from engine_service.scheduling.messages import PromptLogprobsEvent
from engine_service.scheduling.scheduler import FinishedEvent, TokenEvent
from engine_service.scheduling.sequence import Request
from engine_service.served_model import ServedModel
from service_common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from service_common.outbox import Outbox
from service_common.status import to_status


class Reader(Protocol):
    """Whoever waits for a request's updates: a `RequestStream`."""

    @property
    def outbox(self) -> Outbox:
        """Where the updates go."""

    @property
    def stream_id(self) -> int:
        """Names the stream among all of the registry's life."""

    def ended(self, live: ServedRequest) -> None:
        """All choices of `live` have had their terminal update."""


@dataclass(slots=True, eq=False)
class ServedRequest:
    """A request between its admission and its end."""

    reader: Reader
    request_id: int  # the stream's number for it
    engine_id: int
    global_id: str
    owner: str
    accepted: Accepted
    num_choices: int
    arrival: float
    has_tokens: bool = False
    open_choices: set[int] = field(default_factory=set)  # admitted and not ended
    deferred: list[Command] | None = None  # what is to follow once its constraint is compiled


class RequestRegistry:
    """Owns the live requests of all streams."""

    def __init__(self, loop: EngineLoop, model: ServedModel, metrics: EngineMetrics, grammars: GrammarCompiler) -> None:
        self._loop, self._model, self._metrics, self._grammars = loop, model, metrics, grammars
        self._compiling: set[asyncio.Task[None]] = set()
        self._engine_ids = itertools.count(1)
        self._stream_ids = itertools.count(1)
        self._by_engine_id: dict[int, ServedRequest] = {}
        self._by_global_id: dict[str, ServedRequest] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._by_engine_id)

    def new_stream_id(self) -> int:
        """A name for a stream, never given before."""
        return next(self._stream_ids)

    def submit(self, submit: TokenSubmit, reader: Reader) -> ServedRequest:
        """Checks a request and passes it to the engine. A RequestError tells why it is refused here.

        What only the engine or the compiler of grammars can refuse arrives as the request's terminal update.
        """
        if self._draining:
            raise UnavailableError("the engine is shutting down", reason="DRAINING", retry_after_seconds=1.0)
        self._check_vocabulary(submit.vocab_sha256)
        constraint = to_constraint(submit.params)
        request = to_request(
            submit,
            engine_id=next(self._engine_ids),
            stream_id=reader.stream_id,
            now=time.monotonic(),
            vocab_size=self._model.vocab_size,
            context_length=self._model.context_length,
            ids_containing=self._model.token_search.ids_containing,
        )
        self._loop.reserve(request)
        global_id = secrets.token_hex(16)
        accepted = Accepted(
            global_id=global_id,
            seed=request.sampling.seed,
            numerics_id=self._model.numerics_id,
            num_prompt_tokens=len(request.prompt_ids),
        )
        live = ServedRequest(
            reader,
            submit.request_id,
            request.id,
            global_id,
            submit.owner,
            accepted,
            request.num_choices,
            request.arrival,
        )
        self._by_engine_id[request.id] = live
        self._by_global_id[global_id] = live
        self._idle.clear()
        if constraint is None:
            self._loop.post(lambda engine: engine.add(request))
        else:
            live.deferred = []
            compiling = asyncio.create_task(self._add_constrained(live, request, constraint))
            self._compiling.add(compiling)
            compiling.add_done_callback(self._compiling.discard)
        return live

    def refused(self, error: RequestError) -> None:
        """Counts a request that was not taken in."""
        self._metrics.request_refused(error)

    def grant(self, live: ServedRequest, tokens: int) -> None:
        """More credit for each choice."""
        self._post(live, lambda engine: engine.scheduler.grant(live.engine_id, tokens))

    def cancel(self, live: ServedRequest) -> None:
        """Ends the request; its terminal updates follow."""
        self._post(live, lambda engine: engine.scheduler.cancel(live.engine_id))

    def cancel_by_global_id(self, global_id: str, owner: str) -> None:
        """As `cancel`, by the name that every connection knows. NotFoundError where `owner` has none such."""
        live = self._by_global_id.get(global_id)
        if live is None or live.owner != owner:
            raise NotFoundError(f"no live request has the global id {global_id!r}", reason="UNKNOWN_REQUEST")
        self.cancel(live)

    def cancel_all(self) -> None:
        """Ends every request."""
        for live in self._by_engine_id.values():
            self.cancel(live)

    def stop(self, live: ServedRequest, choice: int, num_delivered: int) -> None:
        """Ends one choice at a length found upstream. InvalidArgumentError for a choice that does not exist."""
        if choice >= live.num_choices:
            raise InvalidArgumentError("stop.choice", choice, f"must be below n, which is {live.num_choices}")
        self._post(live, lambda engine: engine.scheduler.stop(live.engine_id, choice, num_delivered))

    def fail(self, live: ServedRequest, error: RequestError) -> None:
        """Ends the request with `error`; its terminal updates follow."""
        self._post(live, lambda engine: engine.scheduler.abort(live.engine_id, error))

    def abandon(self, live: ServedRequest) -> None:
        """The reader is gone: ends the request and delivers nothing more."""
        self._remove(live)
        self._loop.withdraw(live.engine_id)
        self.cancel(live)

    def refuse_new(self) -> None:
        """From now on `submit` raises UnavailableError."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Returns when no request is live."""
        await self._idle.wait()

    def global_id(self, engine_id: int, owner: str) -> str | None:
        """The public name of a request of `owner`; None for others', and for one that has been abandoned."""
        live = self._by_engine_id.get(engine_id)
        return None if live is None or live.owner != owner else live.global_id

    def deliver(self, events: Sequence[EngineEvent]) -> None:
        """Passes the events of one step on to their streams; those of abandoned requests end here."""
        for event in events:
            if isinstance(event, FinishedEvent):
                self._metrics.choice_finished(event)
            live = self._by_engine_id.get(event.request_id)
            if live is not None:
                self._deliver(event, live)

    def fail_all(self, reason: str) -> None:
        """The engine is gone: every request ends with UNAVAILABLE."""
        error = UnavailableError(reason, reason="ENGINE_FAILED")
        for live in list(self._by_engine_id.values()):
            self._end(live, error)

    async def _add_constrained(self, live: ServedRequest, request: Request, constraint: ConstraintSpec) -> None:
        """Passes the request to the engine when its constraint is compiled, and then what came for it meanwhile."""
        try:
            grammar = await self._grammars.compile(constraint)
        except RequestError as error:
            if live.engine_id in self._by_engine_id:
                self._loop.withdraw(live.engine_id)
                self.refused(error)
                self._end(live, error)
            return
        if live.engine_id not in self._by_engine_id:
            return  # abandoned
        self._loop.post(lambda engine: engine.add(replace(request, grammar=grammar)))
        for command in live.deferred or ():
            self._loop.post(command)
        live.deferred = None

    def _post(self, live: ServedRequest, command: Command) -> None:
        """Has the engine run a command after it has been told of the request."""
        if live.deferred is None:
            self._loop.post(command)
        else:
            live.deferred.append(command)

    def _deliver(self, event: EngineEvent, live: ServedRequest) -> None:
        outbox = live.reader.outbox
        match event:
            case TokenEvent():
                if not live.has_tokens:
                    live.has_tokens = True
                    self._metrics.first_token(live.arrival)
                outbox.delta(live.request_id, event.choice, to_delta(event.token))
            case PromptLogprobsEvent():
                outbox.delta(live.request_id, event.choice, to_prompt_delta(event))
            case FinishedEvent():
                outbox.finished(live.request_id, event.choice, to_finished(event))
                live.open_choices.discard(event.choice)
                if not live.open_choices:
                    self._remove(live)
                    live.reader.ended(live)
            case AdmittedEvent():
                outbox.accepted(live.request_id, live.accepted)
                live.open_choices.update(range(live.num_choices))
            case RefusedEvent():
                self.refused(event.error)
                self._end(live, event.error)

    def _end(self, live: ServedRequest, error: RequestError) -> None:
        """Ends what is open of a request; one that was never admitted has one terminal update, that of choice 0."""
        finished = Finished(reason=FINISH_REASON_ERROR, error=to_status(error))
        for choice in sorted(live.open_choices) or [0]:
            live.reader.outbox.finished(live.request_id, choice, finished)
        self._remove(live)
        live.reader.ended(live)

    def _remove(self, live: ServedRequest) -> None:
        del self._by_engine_id[live.engine_id]
        del self._by_global_id[live.global_id]
        if not self._by_engine_id:
            self._idle.set()

    def _check_vocabulary(self, vocab_sha256: str) -> None:
        if vocab_sha256 != self._model.vocab_sha256:
            raise FailedPreconditionError(
                f"the ids come from vocabulary {vocab_sha256[:12] or '(none given)'}, the engine serves "
                f"{self._model.vocab_sha256[:12]}: call GetTokenizer again",
                reason="VOCABULARY_CHANGED",
                field="submit.vocab_sha256",
            )
