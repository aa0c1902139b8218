"""WordPiece (`tokenizer.ggml.model` = bert): each word is cut from its start into the longest tokens there are.

A GGUF file spells a token that begins a word with U+2581 before it, and one that goes on without BERT's ##. Text is
cleaned and cut into words as in BERT's own tokenizer, which llama.cpp (src/llama-vocab.cpp, llm_tokenizer_wpm_session)
approximates: it also drops marks that are no accents (those of Indic scripts), lower-cases character by character and
cuts words of more than 100 characters, which here are unknown.
Source: google-research/bert, tokenization.py; the tokenizers library's BertNormalizer and BertPreTokenizer.
"""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from service_common.gguf_reader import GGUFReader
from service_common.token_spelling import SPACE, bytes_of_pieces
from service_common.token_table import TokenKind, TokenTable
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.bpe import encoded
from tokenizer_service.normalization_keys import LOWERCASE_KEY, STRIP_ACCENTS_KEY
from tokenizer_service.offsets import Encoded

_MAX_WORD_CHARACTERS = 100
# No cleaned text contains this character, so no word begins like one that goes on.
_GOES_ON = "\0"
_UNKNOWN = "\0\0unknown"


class WordPiece:
    """Encodes text without special tokens, and gives the bytes of tokens."""

    add_space_prefix = True
    added = AddedByDefault(bos=True, sep=True)

    def __init__(self, reader: GGUFReader, table: TokenTable, unk_id: int | None) -> None:
        """Build from the file's tokens. `unk_id` stands for a word that tokens do not give as a whole; without one
        such words give nothing."""
        is_lowercase = reader.get_bool(LOWERCASE_KEY, True)
        strips_accents = reader.get_bool(STRIP_ACCENTS_KEY, is_lowercase)
        texts = {token_id: table.texts[token_id] for token_id in table.of_kind(TokenKind.NORMAL)}
        ids = {_bert_spelling(text): token_id for token_id, text in texts.items() if _GOES_ON not in text}
        self._unknown = len(table) if unk_id is None else unk_id
        self._is_unknown_given = unk_id is not None
        ids[_UNKNOWN] = self._unknown
        model = models.WordPiece(
            ids,
            unk_token=_UNKNOWN,
            continuing_subword_prefix=_GOES_ON,
            max_input_chars_per_word=_MAX_WORD_CHARACTERS,
        )
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=strips_accents, lowercase=is_lowercase
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for."""
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids if self._is_unknown_given else [token_id for token_id in ids if token_id != self._unknown]

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for, as they are before normalization."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded(encoding, None if self._is_unknown_given else self._unknown)

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""
        return bytes_of_pieces(text)


def _bert_spelling(text: str) -> str:
    return text[1:] if text.startswith(SPACE) else _GOES_ON + text
