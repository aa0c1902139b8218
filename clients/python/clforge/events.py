"""What a generation brings: events as they stream, and whole answers. All values are immutable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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

    `text_offset` is where the chosen token's text begins in the choice's whole text: the first character of which it
    has a byte.
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
    `prompt_logprobs`, where asked for, are of the prompt's tokens, in order and from the second on: in deltas of the
    first choice that come before its first token.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    choice: int = 0
    section: Section | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


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
    """A whole answer. `text` is that of the first choice; `prompt_logprobs` begin with the prompt's second token."""

    choices: tuple[Choice, ...]
    accepted: Accepted
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

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
