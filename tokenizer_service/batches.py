"""Encode and Decode: whole texts to token ids and back, many in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clforge.v1 import tokenizer_pb2 as pb
from service_common.errors import InvalidArgumentError, OutOfRangeError
from service_common.rpc import MAX_MESSAGE_BYTES
from tokenizer_service.offsets import Encoded, Range
from tokenizer_service.validation import check_text_size
from tokenizer_service.vocabulary import Vocabulary

MAX_TEXTS = 1024


def check_encode(request: pb.EncodeRequest, max_bytes: int) -> None:
    """Raises a RequestError for too many texts, or for the first with which all have more than `max_bytes`."""
    _check_count("texts", request.texts)
    for index, text in enumerate(request.texts):
        check_text_size(text, f"texts[{index}]", max_bytes)
        max_bytes -= len(text.encode())


def check_decode(request: pb.DecodeRequest, vocabulary: Vocabulary) -> None:
    """Raises InvalidArgumentError for too many lists, or for the first id that is not in the vocabulary."""
    _check_count("sequences", request.sequences)
    for number, sequence in enumerate(request.sequences):
        if max(sequence.ids, default=0) >= vocabulary.size:
            index, found = next((i, found) for i, found in enumerate(sequence.ids) if found >= vocabulary.size)
            limit = f"must be below the vocabulary's {vocabulary.size} tokens"
            raise InvalidArgumentError(f"sequences[{number}].ids[{index}]", found, limit)


def encode(request: pb.EncodeRequest, vocabulary: Vocabulary) -> pb.EncodeResponse:
    """The answer to a request that has been checked. OutOfRangeError where it is too large to be sent."""
    add_special = request.add_special if request.HasField("add_special") else True
    response = pb.EncodeResponse()
    for text in request.texts:
        if request.with_offsets:
            found = vocabulary.encode_with_offsets(text, add_special=add_special, parse_special=request.parse_special)
            response.offsets.append(_offsets(found.ranges))
        else:
            ids = vocabulary.encode(text, add_special=add_special, parse_special=request.parse_special)
            found = Encoded(ids, [])
        response.sequences.add(ids=found.ids)
    _check_size("texts", response)
    return response


def decode(request: pb.DecodeRequest, vocabulary: Vocabulary) -> pb.DecodeResponse:
    """The answer to a request that has been checked. OutOfRangeError where it is too large to be sent."""
    skip_special = request.skip_special if request.HasField("skip_special") else True
    response = pb.DecodeResponse()
    for sequence in request.sequences:
        if request.with_offsets:
            text, ranges = vocabulary.decode_with_offsets(sequence.ids, skip_special=skip_special)
            response.offsets.append(_offsets(ranges))
        else:
            text = vocabulary.decode(sequence.ids, skip_special=skip_special)
        response.texts.append(text)
    _check_size("sequences", response)
    return response


def _offsets(ranges: Iterable[Range]) -> pb.TokenOffsets:
    result = pb.TokenOffsets()
    for start, end in ranges:
        result.starts.append(start)
        result.ends.append(end)
    return result


def _check_count(field: str, items: Sequence[object]) -> None:
    if len(items) > MAX_TEXTS:
        raise InvalidArgumentError(field, f"a list of {len(items)}", f"must hold at most {MAX_TEXTS}")


def _check_size(field: str, response: pb.EncodeResponse | pb.DecodeResponse) -> None:
    num_bytes = response.ByteSize()
    if num_bytes > MAX_MESSAGE_BYTES:
        raise OutOfRangeError(
            f"the answer to these {field} has {num_bytes} bytes; at most {MAX_MESSAGE_BYTES} can be sent: ask for less "
            "in one call",
            reason="ANSWER_TOO_LONG",
            field=field,
        )
