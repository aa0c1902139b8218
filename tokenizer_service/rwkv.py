"""RWKV's "world" vocabulary (`tokenizer.ggml.model` = rwkv): again and again the longest token with which the rest of a
text begins.

Tokens are any bytes. The file spells them as Python does: \\n, \\t, \\r, \\xff, and \\ before ' and \\.
Source: llama.cpp, src/llama-vocab.cpp (as of llama-cpp-python 0.3.36), llm_tokenizer_rwkv_session.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from service_common.token_spelling import bytes_of_escapes
from service_common.token_table import TokenKind, TokenTable
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.offsets import Encoded, joined, ranges_of_bytes

_MAX_TOKEN_BYTES = 256  # RWKV's own have 128 at most; what longer ones cost grows with their length
_NUM_KEY_BYTES = 2


class Rwkv:
    """Encodes text without special tokens, and gives the bytes of tokens."""

    add_space_prefix = False
    added = AddedByDefault()

    def __init__(self, table: TokenTable, unk_id: int | None) -> None:
        """`unk_id` stands for a byte that is no token. Raises ModelFileError for tokens that are too long."""
        self._unknown = [] if unk_id is None else [unk_id]
        self._ids = {}
        lengths: defaultdict[bytes, set[int]] = defaultdict(set)
        for token_id in table.of_kind(TokenKind.NORMAL):
            token = bytes_of_escapes(table.texts[token_id])
            if len(token) > _MAX_TOKEN_BYTES:
                table.refuse(token_id, f"a token of this kind of vocabulary has at most {_MAX_TOKEN_BYTES} bytes")
            self._ids[token] = token_id
            lengths[token[:_NUM_KEY_BYTES]].add(len(token))
        # Longest first, of the tokens that begin like this; a token of one byte matches any that begins with it.
        self._lengths = {key: sorted(found, reverse=True) for key, found in lengths.items()}

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for."""
        return [token_id for piece in self._pieces(text) for token_id in self._piece_ids(piece)]

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for."""
        pieces = list(self._pieces(text))
        found = zip(map(self._piece_ids, pieces), ranges_of_bytes(pieces), strict=True)
        return joined((start, Encoded(ids, [(0, end - start)] * len(ids))) for ids, (start, end) in found)

    def _piece_ids(self, piece: bytes) -> list[int]:
        token_id = self._ids.get(piece)
        return self._unknown if token_id is None else [token_id]

    def _pieces(self, text: str) -> Iterator[bytes]:
        data, start = text.encode("utf-8"), 0
        while start < len(data):
            for length in self._lengths.get(data[start : start + _NUM_KEY_BYTES], ()):
                piece = data[start : start + length]
                if piece in self._ids:
                    break
            else:
                piece = data[start : start + 1]
            yield piece
            start += len(piece)

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""
        return bytes_of_escapes(text)
