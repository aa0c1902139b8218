"""Which characters of a text each of its tokens stands for.

A token stands for every character that it was made from, or that is made of it, in whole or in part; so those of
several tokens belong to each of them. A token without any, such as begin-of-text, has an empty range.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

# The first character, and one past the last.
Range: TypeAlias = tuple[int, int]

# What of bytes becomes one character, or one U+FFFD where it is no UTF-8: Unicode 16, 3.9, table 3-7, and its advice on
# "maximal subparts", which Python follows.
_CHARACTER = re.compile(
    rb"[\x00-\x7F]|[\xC2-\xDF][\x80-\xBF]?|\xE0(?:[\xA0-\xBF][\x80-\xBF]?)?|[\xE1-\xEC\xEE\xEF][\x80-\xBF]{0,2}"
    rb"|\xED(?:[\x80-\x9F][\x80-\xBF]?)?|\xF0(?:[\x90-\xBF][\x80-\xBF]{0,2})?|[\xF1-\xF3][\x80-\xBF]{0,3}"
    rb"|\xF4(?:[\x80-\x8F][\x80-\xBF]{0,2})?|[\x80-\xFF]"
)


class Encoded(NamedTuple):
    """Token ids of a text, and the characters of it that each stands for."""

    ids: list[int]
    ranges: list[Range]


class Decoded(NamedTuple):
    """The text of token ids, and the characters of it that each stands for."""

    text: str
    ranges: list[Range]


def ranges_of_bytes(pieces: Sequence[bytes]) -> list[Range]:
    """For each piece the characters of `b"".join(pieces).decode("utf-8", "replace")` of which it has a byte.

    The range of a piece without bytes is empty, and lies after the last character that has begun before it.
    """
    data = b"".join(pieces)
    begins = np.zeros(len(data), np.uint8)
    begins[[match.start() for match in _CHARACTER.finditer(data)]] = 1
    num_begun: list[int] = [0, *np.cumsum(begins, dtype=np.int64).tolist()]  # before each byte
    bounds = pairwise(accumulate(map(len, pieces), initial=0))
    # What has begun before the end of a piece's first byte ends with the character of that byte.
    return [(num_begun[start + 1] - 1 if start < end else num_begun[end], num_begun[end]) for start, end in bounds]


def num_begun(data: bytes) -> int:
    """How many characters have a first byte in `data`, bytes that are no UTF-8 counted as U+FFFD."""
    return len(_CHARACTER.findall(data))


def joined(parts: Iterable[tuple[int, Encoded]]) -> Encoded:
    """All parts of a text, one after the other; each comes with the character at which it begins."""
    result = Encoded([], [])
    for start, part in parts:
        result.ids.extend(part.ids)
        result.ranges.extend((start + first, start + end) for first, end in part.ranges)
    return result


def in_original(encoded: Encoded, origins: Sequence[Range]) -> Encoded:
    """The tokens of a text that was made from another one: `origins` tells from what each of its characters was."""
    return Encoded(encoded.ids, [(origins[start][0], origins[end - 1][1]) for start, end in encoded.ranges])
