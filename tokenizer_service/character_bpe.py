"""BPE whose letters are characters instead of bytes, as in SentencePiece, but which merges by rank: Gemma 4 and others.

Source: llama.cpp, src/llama-vocab.cpp (as of llama-cpp-python 0.3.36), where these are kinds of LLAMA_VOCAB_TYPE_BPE
with `byte_encode` false. A character that is no token becomes the tokens of its bytes; one without these is left out.
"""

from __future__ import annotations

import re
from itertools import accumulate

from tokenizers import pre_tokenizers

from service_common.gguf_reader import GGUFReader
from service_common.token_spelling import SPACE, bytes_of_pieces
from service_common.token_table import TokenKind, TokenTable
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.bpe import BYTE_TOKENS, Bpe
from tokenizer_service.merges import mergeable_ids, read_merges
from tokenizer_service.normalization_keys import LOWERCASE_KEY
from tokenizer_service.offsets import Encoded, in_original, joined
from tokenizer_service.pre_tokenizers import CharacterRule

_LINES = re.compile(r"\n+|[^\n]+")


class CharacterBpe:
    """Encodes text without special tokens, and gives the bytes of tokens."""

    add_space_prefix = False

    def __init__(self, reader: GGUFReader, table: TokenTable, rule: CharacterRule) -> None:
        """Build from the file's merges. Raises ModelFileError for missing merges and merges of unknown tokens."""
        self.added = AddedByDefault(bos_always=rule.bos_always)
        self._rule = rule
        self._is_lowercase = rule.drops_white_space and reader.get_bool(LOWERCASE_KEY, False)
        self._ids = mergeable_ids(table)
        byte_ids = {BYTE_TOKENS[table.byte_value(token_id)]: token_id for token_id in table.of_kind(TokenKind.BYTE)}
        merges = read_merges(reader, table, self._ids)
        words = pre_tokenizers.WhitespaceSplit() if rule.drops_white_space else None
        self._bpe = Bpe(self._ids | byte_ids, merges, words, byte_fallback=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for."""
        if self._rule.drops_white_space:
            return self._bpe.encode([text.lower() if self._is_lowercase else text])
        lines = _lines(text)
        if not self._rule.has_newline_tokens:
            return self._bpe.encode(lines)
        ids: list[int] = []
        for line in lines:
            ids += [self._ids[line]] if self._is_newline_token(line) else self._bpe.encode([line])
        return ids

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for."""
        if self._is_lowercase:
            origins = [(index, index + 1) for index, character in enumerate(text) for _ in character.lower()]
            return in_original(self._bpe.encode_with_offsets(text.lower()), origins)
        if self._rule.drops_white_space:
            return self._bpe.encode_with_offsets(text)
        lines = _lines(text)
        return joined(zip(accumulate(map(len, lines), initial=0), map(self._line_with_offsets, lines), strict=False))

    def _line_with_offsets(self, line: str) -> Encoded:
        if self._rule.has_newline_tokens and self._is_newline_token(line):
            return Encoded([self._ids[line]], [(0, len(line))])
        return self._bpe.encode_with_offsets(line)

    def _is_newline_token(self, line: str) -> bool:
        return line[0] == "\n" and line in self._ids

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""
        return text.encode("utf-8") if self._rule.drops_white_space else bytes_of_pieces(text)


def _lines(text: str) -> list[str]:
    """Runs of newlines, and the lines between, with the sign for a space."""
    return _LINES.findall(text.replace(" ", SPACE))
