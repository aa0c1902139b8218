"""The template that makes a prompt of a conversation, as the model file has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from clforge.v1.generation_pb2 import (
    CHAT_TEMPLATE_ORIGIN_FALLBACK,
    CHAT_TEMPLATE_ORIGIN_MODEL,
    ChatTemplateOrigin,
)
from service_common.errors import ChatTemplateError
from service_common.gguf_reader import GGUFReader

TEMPLATE_KEY = "tokenizer.chat_template"
TOOL_USE_KEY = "tokenizer.chat_template.tool_use"
MAX_TEMPLATE_BYTES = 1 << 20

# For models without a template: they know no special tokens for turns, but they know how a dialogue is written.
PLAIN_DIALOGUE = """\
{%- for message in messages -%}
{{ message.role | capitalize }}: {{ message.content | trim }}

{% endfor -%}
{%- if add_generation_prompt -%} Assistant: {%- endif -%}
"""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source in Jinja, and another one, if the file has it, for conversations with tools.

    `is_fallback`: the file has no template, and PLAIN_DIALOGUE stands in for it. Nothing is compiled here: that is the
    business of the process that renders.
    """

    source: str
    tool_use_source: str | None = None
    is_fallback: bool = False

    @property
    def origin(self) -> ChatTemplateOrigin.ValueType:
        """Where the source comes from, as clients are told."""
        return CHAT_TEMPLATE_ORIGIN_FALLBACK if self.is_fallback else CHAT_TEMPLATE_ORIGIN_MODEL

    @classmethod
    def from_gguf(cls, reader: GGUFReader) -> Self:
        """What the file says. ModelFileError for what is no text."""
        if TEMPLATE_KEY not in reader:
            return cls(PLAIN_DIALOGUE, is_fallback=True)
        return cls(reader.get_str(TEMPLATE_KEY), reader.get_str(TOOL_USE_KEY) if TOOL_USE_KEY in reader else None)

    def source_for(self, *, has_tools: bool, field: str) -> str:
        """The source to render with; ChatTemplateError, about the conversation in `field`, for one that is too long."""
        source = self.tool_use_source if has_tools and self.tool_use_source is not None else self.source
        num_bytes = len(source.encode())
        if num_bytes > MAX_TEMPLATE_BYTES:
            raise ChatTemplateError(
                f"the model's chat template has {num_bytes} bytes; at most {MAX_TEMPLATE_BYTES} are taken", field=field
            )
        return source
