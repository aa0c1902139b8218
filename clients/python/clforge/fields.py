"""Values on their way into a message. What it cannot hold is an InvalidRequestError that names the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from clforge.errors import InvalidRequestError, invalid

MAX_MESSAGE_BYTES = 16 << 20
MAX_NESTING = 30  # of objects and lists; servers read messages that are not much deeper

_ENVELOPE_BYTES = 1 << 10  # what a stream puts around a request
_MAX_TOKEN_ID = (1 << 32) - 1

_M = TypeVar("_M", bound=Message)


def text(value: Any, field: str) -> str:
    """A text that can be sent: any but one with lone surrogates."""
    if not isinstance(value, str):
        raise invalid(field, value, "must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(field, value, "must be Unicode, without lone surrogates") from None
    return value


def texts(values: Any, field: str) -> list[str]:
    """A list of texts; the error names the one at fault."""
    return [text(value, f"{field}[{number}]") for number, value in enumerate(items(values, field))]


def items(values: Any, field: str) -> Iterable[Any]:
    """What can be iterated over, but for a text, bytes or an object, which are hardly meant."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise invalid(field, values, "must be a list")
    return values


def token_ids(values: Any, field: str) -> list[int]:
    """A list of what may be token ids; which of them a vocabulary has is the server's to tell."""
    result = []
    for number, value in enumerate(items(values, field)):
        try:
            token_id = index(value)
        except TypeError:
            raise invalid(f"{field}[{number}]", value, "must be an integer") from None
        if not 0 <= token_id <= _MAX_TOKEN_ID:
            raise invalid(f"{field}[{number}]", value, f"must be 0 to {_MAX_TOKEN_ID}")
        result.append(token_id)
    return result


def fill(struct: Struct, fields: Any, field: str) -> None:
    """Sets `struct` to an object of JSON's types."""
    if not isinstance(fields, Mapping):
        raise invalid(field, fields, "must be an object of JSON's types")
    struct.update(_plain(fields, field, 0))


def check_size(message: _M, field: str) -> _M:
    """The message, if it can be sent: gRPC would call the server overloaded, and end a session's stream."""
    num_bytes = message.ByteSize()
    if num_bytes > MAX_MESSAGE_BYTES - _ENVELOPE_BYTES:
        limit = f"makes a message of {num_bytes} bytes; at most {MAX_MESSAGE_BYTES - _ENVELOPE_BYTES} can be sent"
        raise InvalidRequestError(f"{field} {limit}", code="INVALID_ARGUMENT", reason="BAD_PARAMETER", field=field)
    return message


def _plain(value: Any, field: str, depth: int) -> Any:
    """The value as dict, list and scalars."""
    if depth > MAX_NESTING:
        limit = f"objects and lists may be nested {MAX_NESTING} deep"
        raise InvalidRequestError(f"{field}: {limit}", code="INVALID_ARGUMENT", reason="BAD_PARAMETER", field=field)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value, field)
    if isinstance(value, int | float):
        return _number(value, field)
    if isinstance(value, Mapping):
        return {text(key, field): _plain(item, f"{field}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{field}[{number}]", depth + 1) for number, item in enumerate(value)]
    raise invalid(field, value, "must be of JSON's types")


def _number(value: float, field: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise invalid(field, value, "must be a finite number of double precision")
    return number
