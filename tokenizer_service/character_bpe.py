"""BPE whose letters are characters instead of bytes, as in SentencePiece, but which merges by rank: Gemma 4 and others.

Source: llama.cpp, src/llama-vocab.cpp (as of llama-cpp-python 0.3.36), where these are kinds of LLAMA_VOCAB_TYPE_BPE
with `byte_encode` false. A character that is no token becomes the tokens of its bytes; one without these is left out.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer, models, pre_tokenizers

from service_common.gguf_reader import GGUFReader
from service_common.token_spelling import SPACE, bytes_of_pieces
from service_common.token_table import TokenKind, TokenTable
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.merges import mergeable_ids, read_merges
from tokenizer_service.normalization_keys import LOWERCASE_KEY
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
        byte_ids = {f"<0x{table.byte_value(token_id):02X}>": token_id for token_id in table.of_kind(TokenKind.BYTE)}
        merges = read_merges(reader, table, self._ids)
        self._tokenizer = Tokenizer(models.BPE(self._ids | byte_ids, merges, byte_fallback=True))
        if rule.drops_white_space:
            self._tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for."""
        if self._rule.drops_white_space:
            return self._merged([text.lower() if self._is_lowercase else text])
        lines = _LINES.findall(text.replace(" ", SPACE))
        if not self._rule.has_newline_tokens:
            return self._merged(lines)
        ids: list[int] = []
        for line in lines:
            ids += [self._ids[line]] if line[0] == "\n" and line in self._ids else self._merged([line])
        return ids

    def _merged(self, pieces: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return [token_id for encoding in encodings for token_id in encoding.ids]

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""
        return text.encode("utf-8") if self._rule.drops_white_space else bytes_of_pieces(text)
