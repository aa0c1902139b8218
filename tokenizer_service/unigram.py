"""Unigram (`tokenizer.ggml.model` = t5): of all ways to cut a text into tokens, the one with the highest sum of scores.

Source: llama.cpp, src/llama-vocab.cpp (as of llama-cpp-python 0.3.36), llm_tokenizer_ugm_session; SentencePiece,
unigram_model.cc. Two departures: text without a token becomes byte tokens where the file has them, as in SentencePiece;
and unused tokens are not given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer, models

from service_common.gguf_reader import GGUFReader
from service_common.token_spelling import SPACE, bytes_of_pieces
from service_common.token_table import TokenKind, TokenTable, read_scores
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.character_map import CharacterMap
from tokenizer_service.normalization_keys import ADD_SPACE_PREFIX_KEY, REMOVE_EXTRA_SPACES_KEY
from tokenizer_service.offsets import Encoded, Range, in_original
from tokenizer_service.spm_bpe import words_between_spaces

_USER_DEFINED_SCORE = 0.0
_WORD = re.compile("[^ ]+")
_MAX_TOKEN_CHARACTERS = 256  # SentencePiece's own have some 16; what longer ones cost grows with their length


class Unigram:
    """Encodes text without special tokens, and gives the bytes of tokens."""

    added = AddedByDefault(eos=True)

    def __init__(self, reader: GGUFReader, table: TokenTable, unk_id: int | None) -> None:
        """Build from the file's scores and its map of characters. `unk_id` stands for characters that neither a token
        nor byte tokens give.

        Raises ModelFileError for scores that do not fit, tokens that are too long, and a map that is damaged.
        """
        self._characters = CharacterMap.from_gguf(reader)
        self._removes_extra_spaces = reader.get_bool(REMOVE_EXTRA_SPACES_KEY, False)
        self._adds_prefix = reader.get_bool(ADD_SPACE_PREFIX_KEY, False)
        self.add_space_prefix = self._removes_extra_spaces or self._adds_prefix
        byte_ids = {table.byte_value(token_id): token_id for token_id in table.of_kind(TokenKind.BYTE)}
        self._byte_ids = [byte_ids[byte] for byte in range(256)] if len(byte_ids) == 256 else None
        self._gives_unknown = self._byte_ids is None and unk_id is not None
        self._tokenizer, self._unknown = _build(read_scores(reader, len(table)).tolist(), table, unk_id)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for, and which follows none but special tokens."""
        text = self._normalized(text)
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if self._gives_unknown or self._unknown not in ids:
            return ids
        return self._with_offsets(text).ids

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for; those that became others, or fewer
        spaces, are those before the change."""
        normalized, origins = self._normalized_with_origins(text)
        return in_original(self._with_offsets(normalized), origins)

    def _with_offsets(self, normalized: str) -> Encoded:
        """Ids, with the characters of the normalized text."""
        encoding, result = self._tokenizer.encode(normalized, add_special_tokens=False), Encoded([], [])
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if self._gives_unknown or token_id != self._unknown:
                result.ids.append(token_id)
                result.ranges.append((start, end))
            elif self._byte_ids is not None:
                for index in range(start, end):
                    spelled = normalized[index].encode("utf-8")
                    result.ids.extend(self._byte_ids[byte] for byte in spelled)
                    result.ranges.extend([(index, index + 1)] * len(spelled))
        return result

    def _normalized(self, text: str) -> str:
        text = self._characters.apply(text)
        if self._removes_extra_spaces:
            return "".join(SPACE + word for word in text.split(" ") if word)
        prefix = SPACE if self._adds_prefix and text.strip(" ") else ""
        return prefix + text.replace(" ", SPACE)

    def _normalized_with_origins(self, text: str) -> tuple[str, list[Range]]:
        """The normalized text, and for each of its characters those of `text` that it was made from."""
        origins, position = list[Range](), 0
        for replacement, length in self._characters.replaced(text):
            origins += [(position, position + length)] * len(replacement)
            position += length
        if self._removes_extra_spaces:
            origins = _origins_of_words(self._characters.apply(text), origins)
        normalized = self._normalized(text)
        return normalized, [(0, 0)] * (len(normalized) - len(origins)) + origins

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""
        return bytes_of_pieces(text)


def _origins_of_words(text: str, origins: Sequence[Range]) -> list[Range]:
    """`origins` of the characters of `text`, once each of its words has one space before it and none is after them."""
    result, end = list[Range](), 0
    for word in _WORD.finditer(text):
        start = word.start()
        first = origins[start][0]
        result.append((origins[end][0], origins[start - 1][1]) if end < start else (first, first))
        result += origins[start : word.end()]
        end = word.end()
    return result


def _build(scores: Sequence[float], table: TokenTable, unk_id: int | None) -> tuple[Tokenizer, int]:
    """The library's tokenizer, and the id that it gives for text without a token."""
    given = {token_id: scores[token_id] for token_id in table.of_kind(TokenKind.NORMAL)}
    lowest = min(given.values(), default=0.0)  # from which the library takes what unknown text costs
    given |= dict.fromkeys(table.of_kind(TokenKind.USER_DEFINED), _USER_DEFINED_SCORE)
    unknown = len(table) if unk_id is None else unk_id
    given.pop(unknown, None)
    for token_id in given:
        if len(table.texts[token_id]) > _MAX_TOKEN_CHARACTERS:
            table.refuse(token_id, f"a token of this kind of vocabulary has at most {_MAX_TOKEN_CHARACTERS} characters")
    pieces = [(table.texts[i], given[i]) if i in given else ("", lowest) for i in range(len(table))]
    if unk_id is None:
        pieces.append(("", lowest))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    texts = [text for text, _ in pieces]
    if SPACE in texts:  # else unknown text could go on through a space
        tokenizer.pre_tokenizer = words_between_spaces(texts)
    return tokenizer, unknown
