"""Byte-level BPE (`tokenizer.ggml.model` = gpt2): every byte has a letter, and merges join letters to tokens."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Regex, pre_tokenizers

from service_common.gguf_reader import GGUFReader
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.bpe import Bpe
from tokenizer_service.merges import mergeable_ids, read_merges
from tokenizer_service.offsets import Encoded
from tokenizer_service.pre_tokenizers import PreTokenizer
from tokenizer_service.token_table import TokenTable


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

    def __init__(self, reader: GGUFReader, table: TokenTable, rule: PreTokenizer) -> None:
        """Build from the file's merges. Raises ModelFileError for missing merges and merges of unknown tokens."""
        self.added = AddedByDefault(bos=rule.add_bos)
        ids = mergeable_ids(table)
        merges = read_merges(reader, table, ids)
        self._bpe = Bpe(ids, merges, words_of(rule), letters=_BYTE_OF_LETTER, ignore_merges=rule.ignore_merges)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for."""
        return self._bpe.encode([text])

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for."""
        return self._bpe.encode_with_offsets(text)

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
