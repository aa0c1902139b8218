"""The whole answer of a generation, gathered from its updates."""

from __future__ import annotations

from clforge.v1.generation_pb2 import (
    FINISH_REASON_ERROR,
    SECTION_ANSWER,
    SECTION_REASONING,
    Accepted,
    TokenLogprobs,
    Update,
)
from clforge.v1.tokenizer_pb2 import CompleteResponse
from service_common.status import from_status


class Completion:
    """Takes the updates of one request; `response` is the answer once all are in."""

    def __init__(self) -> None:
        self._accepted = Accepted()
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._choices: dict[int, CompleteResponse.Choice] = {}

    def add(self, update: Update) -> None:
        """Takes the next update. Raises the error of a choice that failed."""
        choice = self._choices.setdefault(update.choice, CompleteResponse.Choice())
        match update.WhichOneof("event"):
            case "accepted":
                self._accepted = update.accepted
            case "delta":
                choice.text += update.delta.text
                if update.delta.section == SECTION_ANSWER:
                    choice.answer += update.delta.text
                elif update.delta.section == SECTION_REASONING:
                    choice.reasoning += update.delta.text
                choice.token_ids.extend(update.delta.token_ids)
                choice.logprobs.extend(update.delta.logprobs)
                self._prompt_logprobs.extend(update.delta.prompt_logprobs)
            case "finished" if update.finished.reason == FINISH_REASON_ERROR:
                raise from_status(update.finished.error)
            case "finished":
                choice.finished.CopyFrom(update.finished)

    def response(self) -> CompleteResponse:
        """The choices in order, and how the request was admitted."""
        return CompleteResponse(
            choices=[self._choices[index] for index in sorted(self._choices)],
            accepted=self._accepted,
            prompt_logprobs=self._prompt_logprobs,
        )
