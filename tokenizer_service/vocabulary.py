"""A model's vocabulary, built from the GGUF file's own: text to token ids and back.

Encodes as llama.cpp does (src/llama-vocab.cpp, `llama_vocab::impl::tokenize`): special tokens are cut out first, the
text between them goes to the vocabulary's own algorithm. One departure: text never gives a control or unused token
unless it is asked to, even where the algorithm could join one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from service_common.errors import InvalidArgumentError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import MODEL_KEY, SpecialTokens
from service_common.token_spelling import SPECIAL_KINDS, VERBATIM_KINDS, token_bytes
from service_common.token_table import TokenKind, TokenTable
from tokenizer_service.added_tokens import AddedTokens
from tokenizer_service.encode_cache import EncodeCache
from tokenizer_service.offsets import Decoded, Encoded, joined, ranges_of_bytes
from tokenizer_service.special_splitter import MAX_SPECIAL_CHARACTERS, SpecialSplitter
from tokenizer_service.stripped_spaces import StrippedSpaces, stripped_spaces
from tokenizer_service.text_models import Source, build_text_model

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class Vocabulary:
    """Token ids and texts of one model. Safe to share among threads.

    Attributes:
        size: number of tokens; ids are 0 to size − 1.
        model: the kind of vocabulary, as `tokenizer.ggml.model` names it.
        special: the ids that have a meaning, among them those that end a generation.
        added: what `encode` puts around a text with `add_special`.
        add_space_prefix: whether `encode` puts a space before text, which `decode` takes away.
    """

    def __init__(self, source: Source, cache: EncodeCache | None) -> None:
        self._table = source.table
        self._text_model = build_text_model(source)
        self._encode_text = cache.wrap(self._text_model.encode) if cache else self._text_model.encode
        self._bytes: list[bytes | None] = [None] * len(source.table)
        self.size = len(source.table)
        self.model = source.reader.get_str(MODEL_KEY)
        self.special = source.special
        self.added = AddedTokens.from_gguf(source.reader, source.special, self._text_model.added)
        self.add_space_prefix = self._text_model.add_space_prefix
        stripped = stripped_spaces(source.reader, source.table)
        self._plain = self._splitter(frozenset((TokenKind.USER_DEFINED,)), stripped)
        self._parsing = self._splitter(VERBATIM_KINDS, stripped)

    @classmethod
    def from_gguf(
        cls, reader: GGUFReader, *, pre_tokenizer: str | None = None, cache: EncodeCache | None = None
    ) -> Self:
        """Build from a file's `tokenizer.*`, which may have no tensors; `pre_tokenizer` overrides the rule it names.

        `cache` keeps the ids of long texts.

        Raises ModelFileError for a kind of vocabulary or a rule that is not known, and for whatever does not fit;
        ConfigError for an override that is not known, or that this kind of vocabulary has no use for.
        """
        special = SpecialTokens.from_gguf(reader)
        table = TokenTable.from_gguf(reader, special)
        return cls(Source(reader, table, special, pre_tokenizer), cache)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds begin- and end-of-text, or a separator, as the model asks. Control tokens spelled in the
        text stay text unless `parse_special`; user-defined ones are always taken as such. Raises InvalidArgumentError
        for text that is not Unicode (lone surrogates).
        """
        if not text.isascii():
            _check_unicode(text)
        ids = _listed(self.added.before) if add_special else []
        for start, end, token_id in (self._parsing if parse_special else self._plain).split(text):
            ids += self._encode_text(text[start:end]) if token_id is None else [token_id]
        return ids + _listed(self.added.after) if add_special else ids

    def encode_with_offsets(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for: before it was normalized, where the
        kind of vocabulary does so. A special token's are its spelling and the white space that belongs to it; begin-
        and end-of-text, and a space that is put before text, have none."""
        _check_unicode(text)
        splitter = self._parsing if parse_special else self._plain
        parts = [
            (start, self._part_with_offsets(text[start:end], token_id)) for start, end, token_id in splitter.split(text)
        ]
        if add_special:
            parts = [(0, _added(self.added.before)), *parts, (len(text), _added(self.added.after))]
        return joined(parts)

    def _part_with_offsets(self, text: str, token_id: int | None) -> Encoded:
        if token_id is not None:
            return Encoded([token_id], [(0, len(text))])
        return self._text_model.encode_with_offsets(text)

    def encode_chat(self, text: str, concealed: Mapping[int, str]) -> list[int]:
        """Token ids of a rendered conversation, in which special tokens are taken as such.

        `concealed` is a table for str.translate that restores the characters of those that are text (SpecialGuard).
        Begin- and end-of-text are added as the model asks, unless the text has them already.
        Source: llama.cpp, tools/server and common/chat.cpp: a template's own begin-of-text gives way to the model's.
        """
        text = text.removeprefix(self._spelling(self.added.before)).removesuffix(self._spelling(self.added.after))
        ids = _listed(self.added.before)
        for start, end, token_id in self._parsing.split(text):
            if token_id is None:
                ids += self._encode_text(text[start:end].translate(concealed))
            else:
                ids.append(token_id)
        return ids + _listed(self.added.after)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of a whole sequence of tokens, without the space that `encode` puts before it.

        Bytes that are not UTF-8 become U+FFFD. Raises InvalidArgumentError for an id that is not in the vocabulary.
        """
        ids = self._checked(ids)
        text = self._joined(ids, skip_special)
        return text[self._prefix_length(ids, skip_special) :]

    def decode_with_offsets(self, ids: Iterable[int], *, skip_special: bool = True) -> Decoded:
        """As `decode`, with the characters of the text of which each of the `ids` has a byte; those left out have
        none."""
        ids = self._checked(ids)
        text = self._joined(ids, skip_special)
        ranges = ranges_of_bytes([self.token_bytes(token_id, skip_special=skip_special) for token_id in ids])
        cut = self._prefix_length(ids, skip_special)
        return Decoded(text[cut:], [(max(start - cut, 0), max(end - cut, 0)) for start, end in ranges])

    def begins_with_prefix(self, first_id: int) -> bool:
        """Whether a text that begins with this token begins with the space that `encode` puts before all text."""
        is_text = self.add_space_prefix and self.kind(first_id) is TokenKind.NORMAL
        return is_text and self.token_bytes(first_id).startswith(b" ")

    def decode_continuation(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text that tokens add to a prompt: as `decode`, with every space."""
        return self._joined(self._checked(ids), skip_special)

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """The bytes a token stands for; a special token's are its spelling, with `skip_special` none, and an unused
        one's none. An id that is not in the vocabulary gives U+FFFD, since models pad their embeddings. Never raises.
        """
        if not 0 <= token_id < self.size:
            return _REPLACEMENT
        if skip_special and self._table.kinds[token_id] in SPECIAL_KINDS:
            return b""
        found = self._bytes[token_id]
        if found is None:
            found = self._bytes[token_id] = token_bytes(self._table, token_id, self._text_model.text_bytes)
        return found

    def kind(self, token_id: int) -> TokenKind:
        """What the token is. Raises InvalidArgumentError for an id that is not in the vocabulary."""
        self._check_id(token_id)
        return self._table.kinds[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether the token is no text: a control token or the unknown one."""
        return self.kind(token_id) in SPECIAL_KINDS

    def token_id(self, spelling: str) -> int | None:
        """The token with this spelling in the file, such as <|im_end|>."""
        return self._table.ids.get(spelling)

    @property
    def bos_text(self) -> str:
        """How begin-of-text is spelled; "" where the model has none."""
        return self._spelling(self.special.bos_id)

    @property
    def eos_text(self) -> str:
        """How end-of-text is spelled; "" where the model has none."""
        return self._spelling(self.special.eos_id)

    def special_spellings(self) -> list[str]:
        """How the tokens are spelled that steer the model or its machinery, and that no user's text may give."""
        ids = {*self._table.of_kind(*SPECIAL_KINDS), *self.special.is_control}
        return [text for token_id in sorted(ids) if (text := self._table.texts[token_id])]

    def user_defined_spellings(self) -> list[str]:
        """How the tokens are spelled that any text gives, before anything else is looked for in it."""
        return [self._table.texts[token_id] for token_id in self._table.of_kind(TokenKind.USER_DEFINED)]

    def token_spelling(self, token_id: int) -> str:
        """The token as the file spells it. Raises InvalidArgumentError for an id that is not in the vocabulary."""
        self._check_id(token_id)
        return self._table.texts[token_id]

    def _spelling(self, token_id: int | None) -> str:
        return "" if token_id is None else self._table.texts[token_id]

    def _joined(self, ids: Iterable[int], skip_special: bool) -> str:
        pieces = [self.token_bytes(token_id, skip_special=skip_special) for token_id in ids]
        return b"".join(pieces).decode("utf-8", "replace")

    def _prefix_length(self, ids: Iterable[int], skip_special: bool) -> int:
        """How much of the text is the space that `encode` puts before it."""
        rendered = (token_id for token_id in ids if not (skip_special and self.is_special(token_id)))
        first = next(rendered, None)
        return int(first is not None and self.begins_with_prefix(first))

    def _checked(self, ids: Iterable[int]) -> list[int]:
        ids = list(ids)
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < self.size:
                raise self._no_token(f"token_ids[{index}]", token_id)
        return ids

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.size:
            raise self._no_token("token_id", token_id)

    def _no_token(self, field: str, token_id: int) -> InvalidArgumentError:
        return InvalidArgumentError(field, token_id, f"must be 0 to {self.size - 1}")

    def _splitter(self, kinds: frozenset[TokenKind], stripped: StrippedSpaces) -> SpecialSplitter:
        texts = {self._table.texts[token_id]: token_id for token_id in self._table.of_kind(*kinds)}
        texts.pop("", None)
        for text, token_id in texts.items():
            if len(text) > MAX_SPECIAL_CHARACTERS:
                limit = f"a token that is looked for in text as it is has at most {MAX_SPECIAL_CHARACTERS} characters"
                self._table.refuse(token_id, limit)
        return SpecialSplitter(texts, stripped)


def _listed(token_id: int | None) -> list[int]:
    return [] if token_id is None else [token_id]


def _added(token_id: int | None) -> Encoded:
    return Encoded([], []) if token_id is None else Encoded([token_id], [(0, 0)])


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("text", text[error.start], "text must be Unicode, without lone surrogates") from None
