"""From what a server says to events and answers: the wire's messages go in, the SDK's values come out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from clforge.errors import ProtocolError, from_status
from clforge.events import (
    Accepted,
    ChatTemplateOrigin,
    Choice,
    Completion,
    Delta,
    Event,
    Finished,
    FinishReason,
    Logprob,
    ModelInfo,
    Section,
    Timings,
    TokenLogprobs,
    Usage,
)
from clforge.v1 import generation_pb2 as pb
from clforge.v1 import tokenizer_pb2


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
    prompt_logprobs = _logprobs(response.prompt_logprobs)
    return Completion(tuple(choices), accepted_from_proto(response.accepted), prompt_logprobs)


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
    return Delta(
        text=delta.text,
        token_ids=tuple(delta.token_ids),
        num_tokens=delta.num_tokens,
        logprobs=_logprobs(delta.logprobs),
        choice=choice,
        section=_SECTIONS.get(delta.section),
        prompt_logprobs=_logprobs(delta.prompt_logprobs),
    )


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
