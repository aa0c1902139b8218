"""Byte-level BPE (`tokenizer.ggml.model` = gpt2): every byte has a letter, and merges join letters to tokens."""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

from service_common.gguf_reader import GGUFReader
from service_common.token_spelling import BYTE_OF_LETTER, bytes_of_letters
from service_common.token_table import TokenTable
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.bpe import Bpe
from tokenizer_service.merges import mergeable_ids, read_merges
from tokenizer_service.offsets import Encoded
from tokenizer_service.pre_tokenizers import PreTokenizer


class ByteLevelBpe:
    """Encodes text without special tokens, and gives the bytes of tokens."""

    add_space_prefix = False

    def __init__(self, reader: GGUFReader, table: TokenTable, rule: PreTokenizer) -> None:
        """Build from the file's merges. Raises ModelFileError for missing merges and merges of unknown tokens."""
        self.added = AddedByDefault(bos=rule.add_bos)
        ids = mergeable_ids(table)
        merges = read_merges(reader, table, ids)
        self._bpe = Bpe(ids, merges, words_of(rule), letters=BYTE_OF_LETTER, ignore_merges=rule.ignore_merges)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for."""
        return self._bpe.encode([text])

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for."""
        return self._bpe.encode_with_offsets(text)

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""
        return bytes_of_letters(text)


def words_of(rule: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """The rule as the library has it: text cut into words, and words spelled in letters of bytes."""
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
