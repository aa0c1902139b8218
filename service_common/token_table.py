"""The tokens of a GGUF vocabulary, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import TOKENS_KEY, TYPES_KEY, SpecialTokens

MAX_TOKEN_BYTES = 4096
MAX_VOCABULARY_BYTES = 16 << 20

_SCORES_KEY = "tokenizer.ggml.scores"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenKind(IntEnum):
    """What a token is, by the numbers of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class TokenTable:
    """All tokens by id, and ids by text.

    Attributes:
        file: the name that errors carry.
        texts: by id, as the file spells them; "" for a token that no text can give.
        kinds: by id; control tokens that the file gives another type are corrected (see SpecialTokens).
        ids: id of every text but "".
    """

    file: str
    texts: Sequence[str]
    kinds: Sequence[TokenKind]
    ids: Mapping[str, int]

    @classmethod
    def from_gguf(cls, reader: GGUFReader, special: SpecialTokens) -> Self:
        """Read and check. Raises ModelFileError for tokens that are too long, not UTF-8 or there twice, types that do
        not fit, and malformed byte tokens."""
        texts = reader.get_array(TOKENS_KEY, str)
        _check_texts(reader.name, texts)
        kinds = _read_kinds(reader, len(texts))
        for token_id, is_control in special.is_control.items():
            kinds[token_id] = TokenKind.CONTROL if is_control else TokenKind.USER_DEFINED
        table = cls(reader.name, texts, kinds, _unique_ids(reader.name, texts))
        for token_id in table.of_kind(TokenKind.BYTE):
            table.byte_value(token_id)
        return table

    def __len__(self) -> int:
        """The vocabulary's size."""
        return len(self.texts)

    def of_kind(self, *kinds: TokenKind) -> list[int]:
        """Ids of the tokens of these kinds, ascending."""
        return [token_id for token_id, kind in enumerate(self.kinds) if kind in kinds]

    def byte_value(self, token_id: int) -> int:
        """The byte that a byte token stands for."""
        match = _BYTE_TOKEN.fullmatch(self.texts[token_id])
        if match is None:
            self.refuse(token_id, "a byte token is spelled <0x00> to <0xFF>")
        return int(match[1], 16)

    def refuse(self, token_id: int, limit: str) -> NoReturn:
        """Raise a ModelFileError that shows the token and `limit`."""
        raise ModelFileError(self.file, f"{TOKENS_KEY}[{token_id}]", self.texts[token_id], limit)


def read_scores(reader: GGUFReader, num_tokens: int) -> NDArray[np.float32]:
    """The score of every token, (num_tokens,); zeros where the file has none."""
    if _SCORES_KEY not in reader:
        return np.zeros(num_tokens, np.float32)
    stored = reader.key_values[_SCORES_KEY].value
    is_integer = isinstance(stored, np.ndarray) and stored.dtype.kind == "i"
    scores = reader.get_array(_SCORES_KEY, int) if is_integer else reader.get_array(_SCORES_KEY, float)
    _check_length(reader.name, _SCORES_KEY, len(scores), num_tokens)
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ModelFileError(reader.name, f"{_SCORES_KEY}[{index}]", float(scores[index]), "must be finite")
    return scores.astype(np.float32)


def _read_kinds(reader: GGUFReader, num_tokens: int) -> list[TokenKind]:
    if TYPES_KEY not in reader:
        return [TokenKind.NORMAL] * num_tokens
    numbers = reader.get_array(TYPES_KEY, int)
    _check_length(reader.name, TYPES_KEY, len(numbers), num_tokens)
    kinds = {kind.value: kind for kind in TokenKind}
    try:
        return [kinds[number] for number in numbers.tolist()]
    except KeyError as error:
        raise ModelFileError(reader.name, TYPES_KEY, error.args[0], "a token type is 1 to 6") from None


def _check_length(file: str, key: str, length: int, num_tokens: int) -> None:
    if length != num_tokens:
        raise ModelFileError(file, f"length of {key}", length, f"must be {num_tokens}, the length of {TOKENS_KEY}")


def _check_texts(file: str, texts: Sequence[str]) -> None:
    total_bytes = 0
    for token_id, text in enumerate(texts):
        field = f"{TOKENS_KEY}[{token_id}]"
        try:
            num_bytes = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise ModelFileError(file, field, text, "must be UTF-8") from None
        if num_bytes > MAX_TOKEN_BYTES:
            raise ModelFileError(file, f"length of {field}", num_bytes, f"must be at most {MAX_TOKEN_BYTES} bytes")
        total_bytes += num_bytes
    if total_bytes > MAX_VOCABULARY_BYTES:
        limit = f"all tokens together must be at most {MAX_VOCABULARY_BYTES} bytes"
        raise ModelFileError(file, f"bytes of {TOKENS_KEY}", total_bytes, limit)


def _unique_ids(file: str, texts: Sequence[str]) -> dict[str, int]:
    ids = {text: token_id for token_id, text in enumerate(texts)}
    if len(ids) < len(texts):
        seen: dict[str, int] = {}
        for token_id, text in enumerate(texts):
            if text and text in seen:
                limit = f"a token may stand only once, and this is token {seen[text]} too"
                raise ModelFileError(file, f"{TOKENS_KEY}[{token_id}]", text, limit)
            seen[text] = token_id
    ids.pop("", None)
    return ids
