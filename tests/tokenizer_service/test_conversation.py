"""What a conversation may hold, and what a template sees of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from clforge.v1.generation_pb2 import Chat, ChatMessage
from service_common.errors import Code, RequestError
from tests.tokenizer_service.chat_builder import chat, struct
from tokenizer_service.conversation import MAX_MESSAGES, check_chat, said

USER = ChatMessage(role="user", content="x")


@pytest.mark.parametrize(
    ("conversation", "code", "field"),
    [
        (Chat(), Code.INVALID_ARGUMENT, "chat.messages"),
        (Chat(messages=[USER] * (MAX_MESSAGES + 1)), Code.INVALID_ARGUMENT, "chat.messages"),
        (Chat(messages=[USER, ChatMessage(content="x")]), Code.INVALID_ARGUMENT, "chat.messages[1].role"),
        (Chat(messages=[ChatMessage(role="|im_end|")]), Code.INVALID_ARGUMENT, "chat.messages[0].role"),
        (chat("x", messages="y"), Code.INVALID_ARGUMENT, "chat.template_kwargs"),
        (chat("x", bos_token="y"), Code.INVALID_ARGUMENT, "chat.template_kwargs"),
        (chat("x" * 200_000), Code.OUT_OF_RANGE, "chat"),
    ],
)
def test_bad_conversations_are_refused_by_name(conversation: Chat, code: Code, field: str) -> None:
    """The first thing that cannot be used is named: count, role, variable or size."""
    with pytest.raises(RequestError) as caught:
        check_chat(conversation, "chat", 199_999)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_every_role_of_the_protocol_is_taken() -> None:
    """The four that the proto names, with as many messages as may be."""
    for role in ("system", "user", "assistant", "tool"):
        check_chat(Chat(messages=[ChatMessage(role=role)] * MAX_MESSAGES), "chat", 1 << 20)


def test_values_keep_their_types_and_have_one_order() -> None:
    """Whole numbers are integers again, and keys come as models know them, however the map was filled."""
    values: dict[str, Any] = {"z": 1, "a": 1.5, "b": True, "c": None, "d": [1, {"x": "y"}], "e": 2.0**60}
    plain = said(chat("x", tools=[dict(reversed(values.items())) | {"name": "n", "type": "t"}]))["tools"][0]
    assert list(plain) == ["type", "name", "a", "b", "c", "d", "e", "z"]
    assert {key: plain[key] for key in values} == values
    assert (type(plain["z"]), type(plain["e"])) == (int, float)
    assert math.isinf(said(chat("x", n=math.inf))["n"])


def test_a_message_has_only_the_fields_that_are_set() -> None:
    """Templates ask whether a field is there; role and content always are."""
    message = ChatMessage(role="assistant", tool_calls=[struct(name="f")])
    assert said(Chat(messages=[message, USER])) == {
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
            {"role": "user", "content": "x"},
        ],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    assert said(chat("x", add_generation_prompt=False))["add_generation_prompt"] is False
