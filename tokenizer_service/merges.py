"""`tokenizer.ggml.merges`: which two tokens join to a third, in order of rank."""

from __future__ import annotations

from collections.abc import Mapping

from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import MERGES_KEY
from service_common.token_table import TokenKind, TokenTable


def mergeable_ids(table: TokenTable) -> dict[str, int]:
    """Ids by spelling of the tokens that merges may give."""
    ids = {table.texts[token_id]: token_id for token_id in table.of_kind(TokenKind.NORMAL, TokenKind.USER_DEFINED)}
    ids.pop("", None)
    return ids


def read_merges(reader: GGUFReader, table: TokenTable, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges in order of rank, the first of equal ones; without those whose tokens are not all in `ids`.

    Raises ModelFileError for merges of what is no token.
    """
    merges: dict[tuple[str, str], None] = {}
    for rank, merge in enumerate(reader.get_array(MERGES_KEY, str)):
        left, right = _halves(merge)
        if left in ids and right in ids and left + right in ids:
            merges[left, right] = None
        elif not {left, right, left + right} <= table.ids.keys():
            limit = "must be two tokens with a space between, which together are a token too"
            raise ModelFileError(reader.name, f"{MERGES_KEY}[{rank}]", merge, limit)
    return list(merges)


def _halves(merge: str) -> tuple[str, str]:
    """What stands before and after the first space that is not the first character; ("", "") if there is none."""
    space = merge.find(" ", 1)
    return ("", "") if space < 0 else (merge[:space], merge[space + 1 :])
