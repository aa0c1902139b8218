"""What a generation brings: events as they stream, and whole answers. All values are immutable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from google.protobuf.duration_pb2 import Duration

from clforge.errors import ProtocolError, from_status
from clforge.v1 import generation_pb2 as pb
from clforge.v1 import tokenizer_pb2


class FinishReason(StrEnum):
    """Why a choice ended. A choice that failed raises its error instead."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class Section(StrEnum):
    """What a piece of text is part of: the answer, the reasoning before it, a mark around that, or an echoed prompt."""

    ANSWER = "answer"
    REASONING = "reasoning"
    MARK = "mark"
    PROMPT = "prompt"


class ChatTemplateOrigin(StrEnum):
    """Where the chat template comes from: the model's file, or, as it has none, plain dialogue ("User: …")."""

    MODEL = "model"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens. Of the prompt's, `cached` came from the prefix cache; of the generated, `delivered` arrived."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    delivered_tokens: int
    drafted_tokens: int
    accepted_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations in seconds: until the first step, from there to the first token, to the last one; and detokenising."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    detokenize_seconds: float


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and the natural logarithm of its probability under the model's own distribution."""

    token_id: int
    logprob: float
    token: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The chosen token at one position, and the most likely ones, best first.

    `text_offset` is where the chosen token's text begins in the choice's whole text, in characters.
    """

    chosen: Logprob
    top: tuple[Logprob, ...]
    text_offset: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request was admitted. `seed` is the one in use, given or drawn; `global_id` names it for CancelRequest."""

    global_id: str
    seed: int
    numerics_id: str
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice's output, which stands for `num_tokens` tokens. `text` may be empty.

    `section` is what all of the text is part of, None where sections are not told apart (see Params).
    """

    text: str
    token_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    choice: int = 0
    section: Section | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one choice. `matched_stop` is the token id or the string that stopped it, if one did."""

    reason: FinishReason
    matched_stop: int | str | None
    usage: Usage
    timings: Timings
    choice: int = 0


Event = Accepted | Delta | Finished


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole output. Of the text, `answer` and `reasoning` are these sections, where they are told apart."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finished: Finished
    answer: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `text` is that of the first choice."""

    choices: tuple[Choice, ...]
    accepted: Accepted

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is being served; lengths in tokens. An engine of the same `numerics_id` gives the same bits."""

    name: str
    architecture: str
    vocab_size: int
    context_length: int
    trained_context_length: int
    eog_token_ids: tuple[int, ...]
    vocab_sha256: str
    numerics_id: str
    weight_bytes: int
    num_parameters: int
    device: str
    version: str
    chat_template_origin: ChatTemplateOrigin | None = None


class UpdateReader:
    """Turns one request's updates into events and knows when they are complete."""

    def __init__(self, num_choices: int) -> None:
        self._next_sequence: dict[int, int] = {}
        self._unfinished = set(range(num_choices))

    @property
    def done(self) -> bool:
        """Whether every choice has finished."""
        return not self._unfinished

    def read(self, update: pb.Update) -> Event:
        """The update's event. Raises the error of a choice that failed, ProtocolError when an update is missing."""
        expected = self._next_sequence.get(update.choice, 0)
        if update.sequence != expected:
            raise ProtocolError(
                f"update {update.sequence} of choice {update.choice} came when {expected} was due; some are missing"
            )
        self._next_sequence[update.choice] = expected + 1
        if update.WhichOneof("event") == "finished":
            self._unfinished.discard(update.choice)
        return event_from_update(update)


def event_from_update(update: pb.Update) -> Event:
    """The event of an update. A choice that failed raises its error; ProtocolError when the update holds no event."""
    match update.WhichOneof("event"):
        case "accepted":
            return accepted_from_proto(update.accepted)
        case "delta":
            return _delta(update.delta, update.choice)
        case "finished":
            return _finished(update.finished, update.choice)
        case _:
            raise ProtocolError("the server sent an update without an event; is it newer than this client?")


def completion_from_proto(response: tokenizer_pb2.CompleteResponse) -> Completion:
    """The whole answer; raises the error of a choice that failed."""
    if not response.choices:
        raise ProtocolError("the server sent an answer without a choice")
    choices = (
        Choice(
            text=choice.text,
            token_ids=tuple(choice.token_ids),
            logprobs=_logprobs(choice.logprobs),
            finished=_finished(choice.finished, index),
            answer=choice.answer,
            reasoning=choice.reasoning,
        )
        for index, choice in enumerate(response.choices)
    )
    return Completion(tuple(choices), accepted_from_proto(response.accepted))


def accepted_from_proto(accepted: pb.Accepted) -> Accepted:
    """How the request was admitted."""
    return Accepted(accepted.global_id, accepted.seed, accepted.numerics_id, accepted.num_prompt_tokens)


def model_info_from_proto(info: pb.ModelInfo) -> ModelInfo:
    """The model's description."""
    return ModelInfo(
        name=info.name,
        architecture=info.architecture,
        vocab_size=info.vocab_size,
        context_length=info.context_length,
        trained_context_length=info.trained_context_length,
        eog_token_ids=tuple(info.eog_token_ids),
        vocab_sha256=info.vocab_sha256,
        numerics_id=info.numerics_id,
        weight_bytes=info.weight_bytes,
        num_parameters=info.num_parameters,
        device=info.device,
        version=info.version,
        chat_template_origin=_ORIGINS.get(info.chat_template_origin),
    )


_REASONS: dict[int, FinishReason] = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
    pb.FINISH_REASON_DEADLINE: FinishReason.DEADLINE,
}


# What a newer server may say beyond these is None, as if it said nothing.
_SECTIONS: dict[int, Section] = {
    pb.SECTION_ANSWER: Section.ANSWER,
    pb.SECTION_REASONING: Section.REASONING,
    pb.SECTION_MARK: Section.MARK,
    pb.SECTION_PROMPT: Section.PROMPT,
}
_ORIGINS: dict[int, ChatTemplateOrigin] = {
    pb.CHAT_TEMPLATE_ORIGIN_MODEL: ChatTemplateOrigin.MODEL,
    pb.CHAT_TEMPLATE_ORIGIN_FALLBACK: ChatTemplateOrigin.FALLBACK,
}


def _delta(delta: pb.Delta, choice: int) -> Delta:
    section = _SECTIONS.get(delta.section)
    return Delta(delta.text, tuple(delta.token_ids), delta.num_tokens, _logprobs(delta.logprobs), choice, section)


def _logprobs(entries: Iterable[pb.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(_logprob(entry.chosen), tuple(map(_logprob, entry.top)), entry.text_offset) for entry in entries
    )


def _logprob(entry: pb.Logprob) -> Logprob:
    return Logprob(entry.token_id, entry.logprob, entry.token)


def _finished(finished: pb.Finished, choice: int) -> Finished:
    if finished.reason == pb.FINISH_REASON_ERROR:
        raise from_status(finished.error)
    if finished.reason not in _REASONS:
        raise ProtocolError(f"the server ended a choice with reason {finished.reason}; is it newer than this client?")
    matched = finished.WhichOneof("matched_stop")
    usage, timings = finished.usage, finished.timings
    return Finished(
        reason=_REASONS[finished.reason],
        matched_stop=getattr(finished, matched) if matched else None,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            generated_tokens=usage.generated_tokens,
            delivered_tokens=usage.delivered_tokens,
            drafted_tokens=usage.drafted_tokens,
            accepted_tokens=usage.accepted_tokens,
        ),
        timings=Timings(
            queue_seconds=_seconds(timings.queue),
            prefill_seconds=_seconds(timings.prefill),
            decode_seconds=_seconds(timings.decode),
            detokenize_seconds=_seconds(timings.detokenize),
        ),
        choice=choice,
    )


def _seconds(duration: Duration) -> float:
    return duration.ToTimedelta() / timedelta(seconds=1)
