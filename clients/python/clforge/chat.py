"""A conversation as a prompt, which the server renders with the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Required, TypedDict

from clforge.errors import invalid
from clforge.fields import fill, items, text
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
    if chat.system is not None:
        result.messages.add(role="system", content=text(chat.system, "system"))
    if isinstance(chat.messages, str):
        result.messages.add(role="user", content=text(chat.messages, "messages"))
    else:
        for turn in items(chat.messages, "messages"):
            index = len(result.messages)
            _fill_message(result.messages.add(), turn, f"messages[{index}]")
    for index, tool in enumerate(items(chat.tools, "tools")):
        fill(result.tools.add(), tool, f"tools[{index}]")
    if chat.template_kwargs is not None:
        fill(result.template_kwargs, chat.template_kwargs, "template_kwargs")
    return result


def _fill_message(message: pb.ChatMessage, turn: Any, field: str) -> None:
    if not isinstance(turn, Mapping) or not turn.keys() <= Message.__annotations__.keys():
        others = "name, tool_calls, tool_call_id, reasoning_content"
        raise invalid(field, turn, f"must have role and, where they apply, content (a text), {others}")
    for name, value in turn.items():
        if value is None:
            continue
        if name == "tool_calls":
            for index, call in enumerate(items(value, f"{field}.tool_calls")):
                fill(message.tool_calls.add(), call, f"{field}.tool_calls[{index}]")
        else:
            setattr(message, name, text(value, f"{field}.{name}"))
