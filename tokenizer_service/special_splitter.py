"""Finding special tokens spelled in text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tokenizer_service.character_map import any_of
from tokenizer_service.stripped_spaces import StrippedSpaces

MAX_SPECIAL_CHARACTERS = 256  # those of models have some 50; what longer ones cost grows with their length

_NUM_KEY_CHARACTERS = 2
# Unicode's White_Space, which str.isspace and \s are not quite.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_ANY_WHITE_SPACE = re.compile(f"[{_WHITE_SPACE}]*")


class Part(NamedTuple):
    """A stretch of a text, from character `start` up to `end`: a special token, or, without an id, text."""

    start: int
    end: int
    token_id: int | None


class SpecialSplitter:
    """Cuts a text into special tokens and the text between them.

    The leftmost match is taken, of those that start at the same character the longest. (llama.cpp takes the longest
    match of the whole text first, and only ASCII's white space beside a token: the two differ where special tokens
    overlap, and beside other white space.) Text is only looked at where its next two characters may begin a token.
    """

    def __init__(self, ids: Mapping[str, int], stripped: StrippedSpaces | None = None) -> None:
        """`ids` by spelling, none empty; `stripped`: those to which white space beside them belongs."""
        self._ids = ids
        self._before, self._after = stripped or (frozenset(), frozenset())
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for text in ids:
            lengths[text[:_NUM_KEY_CHARACTERS]].add(len(text))
        self._lengths = {key: sorted(found, reverse=True) for key, found in lengths.items()}
        self._candidates = _candidates(lengths)

    def split(self, text: str) -> Iterator[Part]:
        """In the order of the text; together the parts are all of it, and none is empty."""
        end = 0
        for candidate in self._candidates.finditer(text) if self._candidates else ():
            start = candidate.start()
            if start < end or (token := self._token_at(text, start)) is None:
                continue
            token_id, stop = self._ids[token], start + len(token)
            if token_id in self._before:
                start = end + len(text[end:start].rstrip(_WHITE_SPACE))
            if token_id in self._after:
                stop = _end_of_white_space(text, stop)
            if end < start:
                yield Part(end, start, None)
            yield Part(start, stop, token_id)
            end = stop
        if end < len(text):
            yield Part(end, len(text), None)

    def _token_at(self, text: str, start: int) -> str | None:
        """The longest token that the text goes on with at `start`."""
        for key in (text[start : start + _NUM_KEY_CHARACTERS], text[start]):
            for length in self._lengths.get(key, ()):
                token = text[start : start + length]
                if token in self._ids:
                    return token
        return None


def _candidates(keys: Iterable[str]) -> re.Pattern[str] | None:
    """Where a text goes on as one of these keys, of one or two characters, may do; None without keys."""
    single = {key for key in keys if len(key) == 1}
    pairs = [key for key in keys if len(key) > 1]
    patterns = [any_of(single)] if single else []
    if pairs:
        patterns.append(any_of({key[0] for key in pairs}) + f"(?={any_of({key[1] for key in pairs})})")
    return re.compile("|".join(patterns)) if patterns else None


def _end_of_white_space(text: str, start: int) -> int:
    match = _ANY_WHITE_SPACE.match(text, start)
    assert match is not None
    return match.end()
