"""White space beside special tokens that belongs to them, which a GGUF file does not tell."""

from __future__ import annotations

from typing import NamedTuple

from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import PRE_KEY
from service_common.token_table import TokenKind, TokenTable

_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_EXEMPT = ("<unk>", "<s>", "<|endoftext|>")
_MASK_RULES = ("jina-v2-de", "jina-v2-es", "jina-v2-code")
_MASK_ARCHITECTURES = ("nomic-bert-moe", "jina-bert-v3")


class StrippedSpaces(NamedTuple):
    """Ids of the tokens to which the white space before, or after, them belongs."""

    before: frozenset[int]
    after: frozenset[int]


def stripped_spaces(reader: GGUFReader, table: TokenTable) -> StrippedSpaces:
    """Told from names, as llama.cpp does it: all of Phi-3's tokens after, a few models' mask before.

    Source: llama.cpp, `llama_vocab::impl::load`, "Handle per token attributes".
    """
    name = reader.get_str("general.name", "").lower()
    architecture, rule = reader.get_str("general.architecture", ""), reader.get_str(PRE_KEY, "")
    if any(part in rule for part in _MASK_RULES) or any(part in architecture for part in _MASK_ARCHITECTURES):
        return StrippedSpaces(_ids(table, "<mask>"), frozenset())
    if any(part in name for part in _PHI3_NAMES):
        special = table.of_kind(TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED)
        return StrippedSpaces(frozenset(), frozenset(special) - _ids(table, *_PHI3_EXEMPT))
    return StrippedSpaces(_ids(table, "[MASK]") if "modern-bert" in name else frozenset(), frozenset())


def _ids(table: TokenTable, *texts: str) -> frozenset[int]:
    return frozenset(table.ids[text] for text in texts if text in table.ids)
