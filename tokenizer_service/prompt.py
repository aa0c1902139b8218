"""What a request's prompt says of its output, once it is encoded: token ids, the text to return, where it begins."""

from __future__ import annotations

from dataclasses import dataclass

from clforge.v1.generation_pb2 import GenerationParams
from clforge.v1.tokenizer_pb2 import TextSubmit
from service_common.errors import InvalidArgumentError, OutOfRangeError
from tokenizer_service.chat_encoder import ChatEncoder
from tokenizer_service.encoder import Encoder
from tokenizer_service.sections import ReasoningMarks, Sections, ends_within_reasoning
from tokenizer_service.vocabulary_fetch import EncodingVocabulary

MAX_ECHO_BYTES = 1 << 20


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's token ids, at least one, and what its request wants to be told.

    `echo` is its text where that is to be returned, else "". `marks` are those to tell reasoning by, None where it is
    not to be told; `within_reasoning`: see ends_within_reasoning. `spells_special`: its text has special tokens too.
    """

    token_ids: list[int]
    echo: str
    marks: ReasoningMarks | None
    within_reasoning: bool
    spells_special: bool

    def sections(self) -> Sections | None:
        """What tells the sections of one choice apart, None where they are not told."""
        return None if self.marks is None else Sections(self.marks, within_reasoning=self.within_reasoning)


async def encode_prompt(
    submit: TextSubmit, encoding: EncodingVocabulary, encoder: Encoder, chat_encoder: ChatEncoder
) -> EncodedPrompt:
    """The prompt of `submit`, which has been checked.

    InvalidArgumentError for one without tokens, OutOfRangeError for one too long to be returned; see also ChatEncoder.
    """
    prompt, params, vocabulary = submit.prompt, submit.params, encoding.vocabulary
    kind = prompt.WhichOneof("kind")
    if kind == "token_ids":
        token_ids = list(prompt.token_ids.ids)
        text = await encoder.run(lambda: vocabulary.decode(token_ids), len(token_ids)) if params.echo else ""
    elif kind == "chat":
        text, token_ids = await chat_encoder.encode(prompt.chat, encoding, "prompt.chat")
    else:
        text = prompt.text
        token_ids = await encoder.run(lambda: vocabulary.encode(text, add_special=True, parse_special=False), len(text))
    if not token_ids:
        raise InvalidArgumentError(f"prompt.{kind}", "empty", "must hold at least one token once encoded")
    if params.echo:
        _check_echo(text, params)
    tells = params.tell_reasoning if params.HasField("tell_reasoning") else kind == "chat" and encoding.marks.known
    return EncodedPrompt(
        token_ids,
        echo=text if params.echo else "",
        marks=encoding.marks if tells else None,
        within_reasoning=tells and ends_within_reasoning(token_ids, vocabulary),
        spells_special=kind == "chat",
    )


def _check_echo(text: str, params: GenerationParams) -> None:
    num_bytes = len(text.encode()) * (params.n if params.HasField("n") else 1)
    if num_bytes > MAX_ECHO_BYTES:
        raise OutOfRangeError(
            f"the prompt has {num_bytes} bytes over all choices; with echo at most {MAX_ECHO_BYTES} are taken",
            reason="PROMPT_TOO_LONG",
            field="params.echo",
        )
