"""A conversation as it is asked for, checked, and as a chat template sees it."""

from __future__ import annotations

from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from clforge.v1.generation_pb2 import Chat, ChatMessage
from service_common.errors import InvalidArgumentError, OutOfRangeError

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 16384

_RESERVED = frozenset(("messages", "tools", "bos_token", "eos_token"))
_EXACT = 1 << 53  # beyond it not every whole number is a double
# A Struct has no order of its own. Templates print tools as JSON, and models have seen it in this order.
_KEY_ORDER = {
    key: rank
    for rank, key in enumerate(
        ("id", "type", "function", "name", "enum", "description", "arguments", "parameters", "properties", "required")
    )
}


def check_chat(chat: Chat, field: str, max_bytes: int) -> None:
    """Raises a RequestError that names the first part of `chat`, which is the request's `field`, that cannot be used.

    Roles are checked because templates build special tokens from them.
    """
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        limit = f"must hold between 1 and {MAX_MESSAGES} messages"
        raise InvalidArgumentError(f"{field}.messages", f"a list of {len(chat.messages)}", limit)
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            raise InvalidArgumentError(
                f"{field}.messages[{index}].role", message.role, f"must be one of {', '.join(ROLES)}"
            )
    for name in sorted(_RESERVED & chat.template_kwargs.fields.keys()):
        raise InvalidArgumentError(f"{field}.template_kwargs", name, "this variable is set by the server alone")
    num_bytes = chat.ByteSize()
    if num_bytes > max_bytes:
        raise OutOfRangeError(
            f"{field} has {num_bytes} bytes; at most {max_bytes} are taken", reason="PROMPT_TOO_LONG", field=field
        )


def said(chat: Chat) -> dict[str, Any]:
    """What comes from the client: messages, tools and its own variables, as values of JSON's types.

    A message has only the fields that are set, and always role and content. `tools` is None without any, as in
    transformers. Keys are sorted, known ones of tool descriptions first; whole numbers are integers.
    """
    tools = [_plain_struct(tool) for tool in chat.tools]
    return {
        "documents": None,  # transformers sets it always
        "add_generation_prompt": True,
        **_plain_struct(chat.template_kwargs),
        "messages": [_message(message) for message in chat.messages],
        "tools": tools or None,
    }


def _message(message: ChatMessage) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        result["name"] = message.name
    if message.tool_calls:
        result["tool_calls"] = [_plain_struct(call) for call in message.tool_calls]
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if message.reasoning_content:
        result["reasoning_content"] = message.reasoning_content
    return result


def _plain_struct(struct: Struct) -> dict[str, Any]:
    keys = sorted(struct.fields, key=lambda key: (_KEY_ORDER.get(key, len(_KEY_ORDER)), key))
    return {key: _plain(struct.fields[key]) for key in keys}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < _EXACT else number
        case "struct_value":
            return _plain_struct(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
    return None
