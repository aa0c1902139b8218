"""SentencePiece's normalization of characters: `tokenizer.ggml.precompiled_charsmap`.

Source: SentencePiece, src/normalizer.cc, Normalizer::NormalizePrefix; llama.cpp, llm_tokenizer_ugm_session.

The bytes are a length, a trie of that many bytes and the replacements, each ended by a zero byte. The trie is a double
array of darts-clone: 32-bit little-endian units, where a child's index is the index of its parent's children exclusive
or the child's byte. (tokenizers.normalizers.Precompiled looks at grapheme clusters instead of the longest prefix, and
trusts the file.)
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Self

import numpy as np

from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from tokenizer_service.normalization_keys import CHARACTER_MAP_KEY

_LENGTH_BYTES = 4
_UNIT_BYTES = 4
_VALUE = 1 << 31  # set in units that hold no byte
_MAX_PREFIX_BYTES = 256  # SentencePiece's own have 12 at most
_MAX_REPLACEMENT_BYTES = 1024
_MAX_NODES = 1 << 20  # counted once for each way to them; SentencePiece's own have some 260,000


class CharacterMap:
    """Replaces, from the start of a text to its end, the longest prefix of what is left that has a replacement."""

    def __init__(self, replacements: Mapping[str, str]) -> None:
        """`replacements` by prefix, none of which is empty."""
        self._replacements = replacements
        self._single = {ord(prefix): text for prefix, text in replacements.items() if len(prefix) == 1}
        longer = [prefix for prefix in replacements if len(prefix) > 1]
        self._longest = max(map(len, longer), default=1)
        self._going_on = frozenset[str]().union(*(prefix[1:] for prefix in longer))
        # Only in runs like these can a longer prefix lie.
        starts = {prefix[0] for prefix in longer}
        self._runs = re.compile(f"{any_of(starts)}{any_of(self._going_on)}+")

    @classmethod
    def from_gguf(cls, reader: GGUFReader) -> Self:
        """Read the file's map; without one, nothing is replaced. Raises ModelFileError for a map that is damaged."""
        if CHARACTER_MAP_KEY not in reader:
            return cls({})
        numbers = reader.get_array(CHARACTER_MAP_KEY, int)
        if not np.isin(numbers, range(-128, 256)).all():
            reader.refuse(CHARACTER_MAP_KEY, "must be an array of bytes")
        try:
            return cls(_parse((numbers & 0xFF).astype(np.uint8).tobytes()))
        except _DamagedError as error:
            raise ModelFileError(
                reader.name, CHARACTER_MAP_KEY, f"an array of {len(numbers)} bytes", str(error)
            ) from None

    def apply(self, text: str) -> str:
        """The text with everything replaced."""
        if self._going_on.isdisjoint(text):
            return text.translate(self._single)
        parts, end = [], 0
        for run in self._runs.finditer(text):
            parts.append(text[end : run.start()].translate(self._single))
            parts += [replacement for replacement, _ in self.replaced(run[0])]
            end = run.end()
        return "".join([*parts, text[end:].translate(self._single)])

    def replaced(self, text: str) -> Iterator[tuple[str, int]]:
        """What `apply` makes of each prefix in turn, and how many characters the prefix has."""
        start = 0
        while start < len(text):
            longest = min(self._longest, len(text) - start)
            lengths = (n for n in range(longest, 0, -1) if text[start : start + n] in self._replacements)
            length = next(lengths, 0)
            yield (self._replacements[text[start : start + length]], length) if length else (text[start], 1)
            start += length or 1


class _DamagedError(Exception):
    """What a map must be, and is not."""


def any_of(characters: Iterable[str]) -> str:
    """A regular expression; Python's is fast only for sets without characters beyond U+FFFF."""
    ordered = sorted(characters)
    first_beyond = bisect(ordered, "\uffff")
    sets = "".join(ordered[:first_beyond]), "".join(ordered[first_beyond:])
    return "(?:" + "|".join(f"[{re.escape(chars)}]" for chars in sets if chars) + ")"


def _parse(data: bytes) -> dict[str, str]:
    trie_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + trie_bytes
    if not trie_bytes or trie_bytes % _UNIT_BYTES or end >= len(data):
        raise _DamagedError(f"the trie of {trie_bytes} bytes must be units of 4 bytes, and replacements must follow")
    units = np.frombuffer(data, "<u4", trie_bytes // _UNIT_BYTES, _LENGTH_BYTES).tolist()
    replacement = cache(partial(_replacement, data[end:]))  # many prefixes share one
    return {_text(prefix): replacement(offset) for prefix, offset in _walk(units)}


def _walk(units: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """All prefixes in the trie, and where the replacement of each is."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        if unit < _VALUE and unit & 0xFF:
            children[index ^ (unit & 0xFF)].append(index)
    stack, num_visited = [(_base(units[0]), b"")], 0
    while stack:
        position, prefix = stack.pop()
        for index in children.get(position, ()):
            num_visited += 1
            unit = units[index]
            longer, below = prefix + bytes([unit & 0xFF]), index ^ _base(unit)
            if num_visited > _MAX_NODES or len(longer) > _MAX_PREFIX_BYTES:
                limit = f"the trie must be at most {_MAX_PREFIX_BYTES} bytes deep, with at most {_MAX_NODES} nodes"
                raise _DamagedError(limit)
            if unit >> 8 & 1:
                if below >= len(units):
                    raise _DamagedError(f"the trie has {len(units)} units, and its unit {index} tells of unit {below}")
                yield longer, units[below] & ~_VALUE
            stack.append((below, longer))


def _base(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)


def _replacement(replacements: bytes, offset: int) -> str:
    end = replacements.find(b"\0", offset, offset + _MAX_REPLACEMENT_BYTES + 1)
    if end < 0:
        size = len(replacements)
        limit = f"replacements take {size} bytes, and the one at {offset} must end within {_MAX_REPLACEMENT_BYTES}"
        raise _DamagedError(limit)
    return _text(replacements[offset:end])


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _DamagedError("prefixes and replacements must be UTF-8") from None
