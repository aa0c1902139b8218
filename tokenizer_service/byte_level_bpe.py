"""Byte-level BPE (`tokenizer.ggml.model` = gpt2): every byte has a letter, and merges join letters to tokens."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import MERGES_KEY, PRE_KEY
from tokenizer_service.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from tokenizer_service.token_table import TokenKind, TokenTable


def _byte_letters() -> dict[str, int]:
    """The letter of every byte: itself where that is printable Latin-1, else the next from U+0100.

    Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_LETTER: Mapping[str, int] = _byte_letters()


class ByteLevelBpe:
    """Encodes text without special tokens, and gives the bytes of tokens."""

    add_space_prefix = False
    add_eos = False

    def __init__(self, reader: GGUFReader, table: TokenTable, pre_tokenizer: str | None = None) -> None:
        """Build from the file's merges and the rule it names, or the rule named `pre_tokenizer`.

        Raises ModelFileError for an unknown rule, missing merges and merges of unknown tokens.
        """
        rule = _rule(reader, pre_tokenizer)
        self.add_bos = rule.add_bos
        ids = {table.texts[token_id]: token_id for token_id in table.of_kind(TokenKind.NORMAL, TokenKind.USER_DEFINED)}
        ids.pop("", None)
        merges = _read_merges(reader, table, ids)
        self._tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=rule.ignore_merges))
        self._tokenizer.pre_tokenizer = words_of(rule)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for."""
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for. One that is not spelled in letters of bytes, as tokens
        added after training are, stands for itself."""
        try:
            return bytes([_BYTE_OF_LETTER[letter] for letter in text])
        except KeyError:
            return text.encode("utf-8")


def words_of(rule: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """The rule as the library has it: text cut into words, and words spelled in letters of bytes."""
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _rule(reader: GGUFReader, name: str | None) -> PreTokenizer:
    name = name or reader.get_str(PRE_KEY, "default")
    if name not in PRE_TOKENIZERS:
        limit = "this pre-tokenizer rule is not known; another one can be named to be used in its place"
        raise ModelFileError(reader.name, PRE_KEY, name, limit)
    return PRE_TOKENIZERS[name]


def _read_merges(reader: GGUFReader, table: TokenTable, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges in order of rank, the first of equal ones; without those that no text can lead to."""
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
