"""Keeps users from spelling special tokens in a conversation that a template will render.

A template writes its own special tokens beside what users say, and both end up in one text. So before rendering, each
character of a special token that a user spells is replaced by a stand-in from Unicode's private use areas, one that
occurs nowhere else in the conversation. The template can still trim, compare and measure: lengths stay, and no other
character changes. After rendering, special tokens are looked for first, and only then the stand-ins are put back.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from service_common.errors import InvalidArgumentError
from tokenizer_service.special_splitter import SpecialSplitter

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_NO_PLAIN_WORD = re.compile(r"\W")
_LONGEST_FRAGMENT = 64  # characters; tokens are shorter, but for those made to cost time


class Concealed(NamedTuple):
    """A value whose special tokens are unrecognisable, and the table for str.translate that restores them."""

    value: Any
    table: Mapping[int, str]


class SpecialGuard:
    """Conceals every special token in a string, and what could become one beside another text.

    The latter is a string that begins with the end of a special token, ends with the beginning of one, or lies inside
    one. Only fragments with a character that is no letter, digit or underscore count, so that plain words, such as
    `user` of <|user|>, can still be compared.
    """

    def __init__(self, spellings: Iterable[str], others: Iterable[str] = ()) -> None:
        """`spellings` of the special tokens, none empty; no stand-in occurs in `others`, which are not concealed."""
        self._spellings = sorted(set(spellings))
        self._taken = frozenset[str]().union(*others)
        self._joined = "\0".join(self._spellings)
        self._alphabet = sorted(set().union(*self._spellings))
        self._starts = _Beginnings(self._spellings)
        self._reversed_ends = _Beginnings([spelling[::-1] for spelling in self._spellings])
        self._splitter = SpecialSplitter({text: index for index, text in enumerate(self._spellings)})

    def conceal(self, value: Any, beside: str) -> Concealed:
        """`value`, of JSON's types, with the special tokens in its strings and keys concealed.

        Stand-ins are characters that occur neither there nor in `beside`, the template. InvalidArgumentError when
        there are not enough of them.
        """
        used = self._taken.union(beside, *_strings(value))
        unused = (code for code in chain(*_PRIVATE_USE) if chr(code) not in used)
        stand_ins = {ord(letter): chr(code) for letter, code in zip(self._alphabet, unused, strict=False)}
        if len(stand_ins) < len(self._alphabet):
            raise InvalidArgumentError("chat", "text", "must leave some of Unicode's private use characters unused")
        concealed = _map_strings(value, lambda text: self._conceal(text, stand_ins))
        return Concealed(concealed, {ord(stand_in): chr(letter) for letter, stand_in in stand_ins.items()})

    def _conceal(self, text: str, stand_ins: Mapping[int, str]) -> str:
        if not self._starts.letters.isdisjoint(text):
            cut = ((text[part.start : part.end], part.token_id) for part in self._splitter.split(text))
            text = "".join(part if token_id is None else part.translate(stand_ins) for part, token_id in cut)
        core = text.strip()  # as a template may do it
        head, tail = self._fragment_lengths(core)
        if not head and not tail:
            return text
        left = text.find(core) + head
        right = left + len(core) - head - tail
        return text[:left].translate(stand_ins) + text[left:right] + text[right:].translate(stand_ins)

    def _fragment_lengths(self, text: str) -> tuple[int, int]:
        """How many characters at the start and at the end of a text could become part of a special token."""
        if _is_fragment(text) and text in self._joined:
            return len(text), 0
        head = self._reversed_ends.length_at_end_of(text[:_LONGEST_FRAGMENT][::-1])
        return head, min(self._starts.length_at_end_of(text), len(text) - head)


class _Beginnings:
    """Finds the beginnings of words at the end of a text. `letters` are those with which a word begins."""

    def __init__(self, words: Collection[str]) -> None:
        self._words = sorted(words)
        self.letters = frozenset(word[0] for word in words)
        self._longest = min(max(map(len, words), default=0), _LONGEST_FRAGMENT)

    def length_at_end_of(self, text: str) -> int:
        """Length of the longest end of `text` with which a word begins, 0 if there is none; see _is_fragment."""
        for length in range(min(self._longest, len(text)), 0, -1):
            end = text[-length:]
            if end[0] in self.letters and _is_fragment(end) and self._begins_a_word(end):
                return length
        return 0

    def _begins_a_word(self, text: str) -> bool:
        position = bisect_left(self._words, text)
        return position < len(self._words) and self._words[position].startswith(text)


def _is_fragment(text: str) -> bool:
    """Whether it is more than a plain word."""
    return _NO_PLAIN_WORD.search(text) is not None


def _strings(value: Any) -> Iterator[str]:
    """All strings and keys in a value of JSON's types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The value with all its strings and keys changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    return [_map_strings(item, change) for item in value] if isinstance(value, list) else value
