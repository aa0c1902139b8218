"""Texts and their token ids, many in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clforge.errors import ProtocolError
from clforge.fields import check_size, items, texts, token_ids
from clforge.v1 import tokenizer_pb2 as pb

# For each token the first character, and one past the last, as of a slice.
Offsets: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Encoding:
    """A text's token ids. `offsets`, where asked for: `text[start:end]` is what each of them was made from.

    Characters of several tokens belong to each of them; a token that was added to the text has start = end.
    """

    token_ids: tuple[int, ...]
    offsets: Offsets | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """The text of token ids. `offsets`, where asked for: `text[start:end]` are the characters of which each has a byte.

    Characters of several tokens belong to each of them; a token that is left out has start = end.
    """

    text: str
    offsets: Offsets | None = None


def encode_request(
    given: Iterable[str], *, add_special: bool, parse_special: bool, with_offsets: bool
) -> pb.EncodeRequest:
    """The message for these texts. InvalidRequestError for what it cannot hold."""
    request = pb.EncodeRequest(
        texts=texts(given, "texts"), add_special=add_special, parse_special=parse_special, with_offsets=with_offsets
    )
    return check_size(request, "texts")


def decode_request(given: Iterable[Iterable[int]], *, skip_special: bool, with_offsets: bool) -> pb.DecodeRequest:
    """The message for these lists of ids. InvalidRequestError for what it cannot hold."""
    sequences = [
        pb.TokenIds(ids=token_ids(ids, f"sequences[{number}]")) for number, ids in enumerate(items(given, "sequences"))
    ]
    request = pb.DecodeRequest(sequences=sequences, skip_special=skip_special, with_offsets=with_offsets)
    return check_size(request, "sequences")


def encodings(request: pb.EncodeRequest, response: pb.EncodeResponse) -> tuple[Encoding, ...]:
    """The answers, in the order of the texts. ProtocolError where some are missing."""
    ids = [tuple(sequence.ids) for sequence in response.sequences]
    _check_count(len(request.texts), ids)
    return tuple(map(Encoding, ids, _offsets(response.offsets, map(len, ids), asked=request.with_offsets)))


def decodings(request: pb.DecodeRequest, response: pb.DecodeResponse) -> tuple[Decoding, ...]:
    """The answers, in the order of the lists. ProtocolError where some are missing."""
    _check_count(len(request.sequences), response.texts)
    lengths = (len(sequence.ids) for sequence in request.sequences)
    return tuple(map(Decoding, response.texts, _offsets(response.offsets, lengths, asked=request.with_offsets)))


def _offsets(given: Sequence[pb.TokenOffsets], lengths: Iterable[int], *, asked: bool) -> list[Offsets | None]:
    expected = list(lengths)
    if not asked:
        return [None] * len(expected)
    if [(len(each.starts), len(each.ends)) for each in given] != [(length, length) for length in expected]:
        raise ProtocolError("the server did not tell the offsets of each token; is it older than this client?")
    return [tuple(zip(each.starts, each.ends, strict=True)) for each in given]


def _check_count(expected: int, answers: Sequence[object]) -> None:
    if len(answers) != expected:
        raise ProtocolError(f"the server answered {expected} items with {len(answers)}")
