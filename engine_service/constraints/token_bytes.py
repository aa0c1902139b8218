"""What a grammar has to know of a vocabulary: the bytes of its tokens, and which of them are no text."""

from __future__ import annotations

from typing import NamedTuple, Self

from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import SpecialTokens
from service_common.token_spelling import SPECIAL_KINDS, spelling_of, token_bytes
from service_common.token_table import TokenTable


class TokenBytes(NamedTuple):
    """A vocabulary without its rules for encoding.

    Attributes:
        texts: by id, what each token adds to a text; b"" for one that adds nothing.
        special_ids: tokens that are no text, ascending; no grammar gives them unless it names them.
        eog_ids: tokens that end a generation, ascending.
    """

    texts: list[bytes]
    special_ids: list[int]
    eog_ids: list[int]

    @classmethod
    def from_gguf(cls, reader: GGUFReader, vocab_size: int) -> Self:
        """Of the file's own vocabulary, filled up to the model's `vocab_size` with tokens that add nothing.

        Raises ModelFileError as TokenTable does.
        """
        special = SpecialTokens.from_gguf(reader)
        table = TokenTable.from_gguf(reader, special)
        text_bytes = spelling_of(reader)
        texts = [token_bytes(table, token_id, text_bytes) for token_id in range(len(table))]
        texts += [b""] * (vocab_size - len(table))
        return cls(texts, table.of_kind(*SPECIAL_KINDS), sorted(special.eog_ids))
