"""One request of a client, from its submit to the terminal update of its last choice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from clforge.v1.generation_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_DEADLINE,
    FINISH_REASON_ERROR,
    SECTION_PROMPT,
    Delta,
    Finished,
    GenerationParams,
    Update,
)
from clforge.v1.tokenizer_pb2 import TextSubmit
from service_common.callers import Caller
from service_common.errors import Code, InvalidArgumentError, RequestError
from service_common.outbox import UpdateWriter
from service_common.status import to_status
from tokenizer_service.bad_words import replace_bad_words
from tokenizer_service.chat_encoder import ChatEncoder
from tokenizer_service.choice import Choice
from tokenizer_service.credit import CreditWindow
from tokenizer_service.encoder import Encoder
from tokenizer_service.engine_client import EngineLink
from tokenizer_service.prompt import EncodedPrompt, encode_prompt
from tokenizer_service.prompt_offsets import PromptOffsets
from tokenizer_service.vocabulary_fetch import EncodingVocabulary


class Generation:
    """Encodes the prompt, submits it, and turns the engine's updates into the client's. Belongs to the event loop.

    A request that ends before the engine has accepted it ends with one terminal update, that of choice 0; an accepted
    one with one for each choice. Nothing follows them, and after `abandon` nothing comes at all.
    """

    def __init__(
        self,
        submit: TextSubmit,
        caller: Caller,
        stream_id: int,
        link: EngineLink,
        encoder: Encoder,
        chat_encoder: ChatEncoder,
        outbox: UpdateWriter,
        on_ended: Callable[[Generation], None],
    ) -> None:
        """`submit` has been checked and is the generation's from now on. `stream_id` names the client's stream.

        `on_ended` hears of the last update once.
        """
        self.request_id = submit.request_id
        self.ended = False
        self._submit, self._caller, self._stream_id, self._link = submit, caller, stream_id, link
        self._outbox, self._on_ended = outbox, on_ended
        self._encoder, self._chat_encoder = encoder, chat_encoder
        self._arrival_ns = time.monotonic_ns()
        params = submit.params
        self._num_choices = params.n if params.HasField("n") else 1
        self._credit = CreditWindow(params.initial_credit if params.HasField("initial_credit") else None)
        self._upstream_id: int | None = None
        self._accepted = False
        self._encoding: EncodingVocabulary | None = None
        self._tried_again = False
        self._num_prompt_tokens = 0
        self._num_waiting_tokens = 0
        self._echo = ""
        self._choices: dict[int, Choice] = {}
        self._early_stops: dict[int, int] = {}
        self._preparing = asyncio.create_task(self._prepare())

    @property
    def is_encoding(self) -> bool:
        """Whether the engine has not been given the request yet."""
        return self._upstream_id is None and not self.ended

    def grant(self, tokens: int) -> None:
        """The client allows `tokens` more per choice."""
        self._credit.grant(tokens)
        self._forward_credit()

    def cancel(self) -> None:
        """Ends the request with CANCELLED; usage comes from the engine, so the terminal updates take a round trip."""
        if self._upstream_id is not None:
            self._link.cancel(self._upstream_id)
        else:
            self._end_unaccepted(Finished(reason=FINISH_REASON_CANCELLED))

    def stop(self, choice: int, num_delivered_tokens: int) -> None:
        """The client ends a choice at a length of its own. InvalidArgumentError for what does not exist."""
        if choice >= self._num_choices:
            raise InvalidArgumentError("stop.choice", choice, f"must be below n, which is {self._num_choices}")
        target = self._choices.get(choice)
        num_delivered = 0 if target is None else target.num_delivered_tokens
        if self._upstream_id is None:
            self._early_stops.setdefault(choice, num_delivered_tokens)
        elif target is not None and not target.halted:
            if num_delivered_tokens > num_delivered:
                limit = f"must be at most {num_delivered}, the tokens delivered"
                raise InvalidArgumentError("stop.num_delivered_tokens", num_delivered_tokens, limit)
            target.halt(num_delivered_tokens)
            self._link.stop(self._upstream_id, choice, num_delivered_tokens)

    def fail(self, error: Exception) -> None:
        """Ends what is open with `error`, and the engine's part of it."""
        if self._upstream_id is not None:
            self._link.abandon(self._upstream_id)
        self._end_all(Finished(reason=FINISH_REASON_ERROR, error=to_status(error)))

    def abandon(self) -> None:
        """The client is gone: ends everything at once, in silence."""
        self.ended = True
        self._end_waiting()
        self._preparing.cancel()
        if self._upstream_id is not None:
            self._link.abandon(self._upstream_id)

    def on_update(self, update: Update) -> None:
        """See UpdateSink."""
        match update.WhichOneof("event"):
            case "accepted":
                self._accepted = True
                self._submit.ClearField("prompt")
                self._outbox.accepted(self.request_id, update.accepted)
                self._return_prompt()
            case "delta":
                self._take_delta(update.choice, update.delta)
            case "finished" if self._accepted:
                self._finish(update.choice, update.finished)
            case "finished":
                self._take_refusal(update.finished)

    def on_lost(self, error: RequestError) -> None:
        """See UpdateSink."""
        self._end_all(Finished(reason=FINISH_REASON_ERROR, error=to_status(error)))

    async def _prepare(self, refused: EncodingVocabulary | None = None) -> None:
        """Encodes and submits, with the vocabulary in use or, when the engine has `refused` that, with a newer one."""
        try:
            async with asyncio.timeout(self._seconds_left()):
                encoding = await self._link.newer_encoding(refused) if refused else self._link.encoding()
                prompt = await encode_prompt(self._submit, encoding, self._encoder, self._chat_encoder)
            params = self._engine_params(encoding)
            if params is None:
                self._end_unaccepted(Finished(reason=FINISH_REASON_DEADLINE))
                return
            stopping = self._submit.params.stopping
            self._choices = {
                index: Choice(
                    encoding.vocabulary,
                    stopping.stop,
                    include_stop=stopping.include_stop,
                    sections=prompt.sections(),
                    num_echoed_characters=len(prompt.echo),
                    prompt_offsets=self._prompt_offsets(prompt, encoding) if index == 0 else None,
                )
                for index in range(self._num_choices)
            }
            self._num_prompt_tokens, self._echo = len(prompt.token_ids), prompt.echo
            self._encoding = encoding
            self._start_waiting(len(prompt.token_ids))
            self._upstream_id = self._link.submit(
                prompt.token_ids,
                params,
                encoding.sha256,
                owner=self._caller.name,
                stream_id=self._stream_id,
                sink=self,
            )
            for choice, num_delivered_tokens in self._early_stops.items():
                self.stop(choice, num_delivered_tokens)
        except TimeoutError:
            self._end_unaccepted(Finished(reason=FINISH_REASON_DEADLINE))
        except Exception as error:
            self.fail(error)

    def _prompt_offsets(self, prompt: EncodedPrompt, encoding: EncodingVocabulary) -> PromptOffsets | None:
        if not self._submit.params.HasField("prompt_logprobs"):
            return None
        return PromptOffsets(encoding.vocabulary, prompt.token_ids[0], skip_special=not prompt.spells_special)

    def _engine_params(self, encoding: EncodingVocabulary) -> GenerationParams | None:
        """The parameters less what is this service's business, with the time that is left; None if none is."""
        params = GenerationParams()
        params.CopyFrom(self._submit.params)
        params.stopping.ClearField("stop")
        params.stopping.ClearField("include_stop")
        replace_bad_words(params.sampling, encoding.vocabulary)
        params.ClearField("tell_reasoning")
        params.ClearField("echo")
        initial_credit = self._credit.initial()
        if initial_credit is not None:
            params.initial_credit = initial_credit
        if params.HasField("timeout"):
            left_ns = self._left_ns()
            if left_ns <= 0:
                return None
            params.timeout.FromNanoseconds(left_ns)
        return params

    def _seconds_left(self) -> float | None:
        """Until the request's own deadline; None where it has none."""
        return self._left_ns() * 1e-9 if self._submit.params.HasField("timeout") else None

    def _left_ns(self) -> int:
        return self._submit.params.timeout.ToNanoseconds() - (time.monotonic_ns() - self._arrival_ns)

    def _start_waiting(self, num_tokens: int) -> None:
        self._end_waiting()  # of ids that the engine has refused
        self._caller.start_waiting(num_tokens)
        self._num_waiting_tokens = num_tokens

    def _end_waiting(self) -> None:
        self._caller.end_waiting(self._num_waiting_tokens)
        self._num_waiting_tokens = 0

    def _return_prompt(self) -> None:
        if self._echo:
            for index in self._choices:
                self._outbox.delta(self.request_id, index, Delta(text=self._echo, section=SECTION_PROMPT))
            self._echo = ""

    def _take_delta(self, index: int, delta: Delta) -> None:
        choice = self._choices.get(index)
        if choice is None:
            return
        if self._num_waiting_tokens:
            self._end_waiting()
        was_halted = choice.halted
        for delivered in choice.push(delta):
            self._outbox.delta(self.request_id, index, delivered)
        if choice.halted and not was_halted and self._upstream_id is not None:
            self._link.stop(self._upstream_id, index, choice.num_delivered_tokens)
        self._forward_credit()

    def _forward_credit(self) -> None:
        if self._upstream_id is None:
            return
        num_held_tokens = max((choice.num_held_tokens for choice in self._choices.values()), default=0)
        missing = self._credit.forward(num_held_tokens)
        if missing:
            self._link.grant(self._upstream_id, missing)

    def _take_refusal(self, finished: Finished) -> None:
        """The engine has not accepted the request. Ids of a vocabulary that it no longer has are made anew, once."""
        has_ids = self._submit.prompt.WhichOneof("kind") == "token_ids"
        stale = finished.error.code == Code.FAILED_PRECONDITION and not has_ids
        if stale and not self._tried_again and self._upstream_id is not None:
            self._tried_again = True
            self._link.forget(self._upstream_id)
            self._upstream_id = None
            self._preparing = asyncio.create_task(self._prepare(self._encoding))
        else:
            self._end_unaccepted(finished)

    def _finish(self, index: int, finished: Finished) -> None:
        choice = self._choices.pop(index, None)
        if choice is None:
            return
        deltas, end = choice.finish(finished)
        for delta in deltas:
            self._outbox.delta(self.request_id, index, delta)
        self._outbox.finished(self.request_id, index, end)
        if not self._choices:
            self._end()

    def _end_all(self, finished: Finished) -> None:
        """Ends every open choice alike, with the usage known here."""
        if not self._accepted:
            self._end_unaccepted(finished)
            return
        for index, choice in list(self._choices.items()):
            finished.usage.CopyFrom(choice.local_usage(self._num_prompt_tokens))
            self._finish(index, finished)

    def _end_unaccepted(self, finished: Finished) -> None:
        if not self.ended:
            self._outbox.finished(self.request_id, 0, finished)
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._end_waiting()
        self._choices.clear()
        if self._upstream_id is not None:
            self._link.forget(self._upstream_id)
        if self._preparing is not asyncio.current_task():
            self._preparing.cancel()
        self._on_ended(self)
