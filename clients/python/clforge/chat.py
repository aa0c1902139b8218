"""A conversation as a prompt, which the server renders with the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Required, TypedDict

from google.protobuf.struct_pb2 import Struct

from clforge.errors import invalid
from clforge.v1 import generation_pb2 as pb


class Message(TypedDict, total=False):
    """One turn: `role` is "system", "user", "assistant" or "tool". The other fields are there where they apply."""

    role: Required[str]
    content: str | None
    name: str
    tool_calls: Sequence[Mapping[str, Any]]
    tool_call_id: str
    reasoning_content: str


@dataclass(frozen=True)
class Chat:
    """A conversation, for `generate`, `complete` and `submit` alike.

    `messages` are the turns, oldest first, or the text of a single turn of the user's; `system` is put before them.
    `tools` are JSON-schema descriptions of callable tools, `template_kwargs` further variables of the template, such as
    `enable_thinking`, or `add_generation_prompt`, which is true unless given. Special tokens spelled in any of them
    stay text.
    """

    messages: str | Sequence[Message]
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    template_kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """What the template made of a conversation, and its token ids."""

    text: str
    token_ids: tuple[int, ...]


def chat_to_proto(chat: Chat) -> pb.Chat:
    """The message. InvalidRequestError for what it cannot hold."""
    result = pb.Chat()
    turns: list[Message] = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    turns += [{"role": "user", "content": chat.messages}] if isinstance(chat.messages, str) else chat.messages
    for index, turn in enumerate(turns):
        try:
            result.messages.add(**{name: value for name, value in turn.items() if value is not None})
        except (TypeError, ValueError, AttributeError) as error:
            others = "name, tool_calls, tool_call_id, reasoning_content"
            limit = f"must have role and, where they apply, content (a text), {others}"
            raise invalid(f"messages[{index}]", turn, limit) from error
    for index, tool in enumerate(chat.tools):
        _fill(result.tools.add(), tool, f"tools[{index}]")
    if chat.template_kwargs is not None:
        _fill(result.template_kwargs, chat.template_kwargs, "template_kwargs")
    return result


def _fill(struct: Struct, fields: Mapping[str, Any], name: str) -> None:
    try:
        struct.update(fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise invalid(name, fields, "must be an object of JSON's types") from error
