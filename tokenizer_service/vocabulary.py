"""A model's vocabulary, built from the GGUF file's own: text to token ids and back.

Encodes as llama.cpp does (src/llama-vocab.cpp, commit 00ad355e, `llama_vocab::impl::tokenize`): special tokens are
cut out first, the text between them goes to the vocabulary's own algorithm. One departure: text never gives a control
or unused token unless it is asked to, even where the algorithm could join one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol, Self

from service_common.errors import InvalidArgumentError, ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import MODEL_KEY, SpecialTokens
from tokenizer_service.byte_level_bpe import ByteLevelBpe
from tokenizer_service.special_splitter import SpecialSplitter
from tokenizer_service.spm_bpe import SpmBpe
from tokenizer_service.token_table import TokenKind, TokenTable

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_SPECIAL = frozenset((TokenKind.CONTROL, TokenKind.UNKNOWN))
# Spelled in the file as in text, and looked for in text before anything else.
_VERBATIM = _SPECIAL | {TokenKind.USER_DEFINED}


class TextModel(Protocol):
    """The algorithm of one kind of vocabulary."""

    @property
    def add_bos(self) -> bool:
        """Whether begin-of-text is added where the file does not say."""

    @property
    def add_eos(self) -> bool:
        """Whether end-of-text is added where the file does not say."""

    @property
    def add_space_prefix(self) -> bool:
        """Whether `encode` puts a space before its text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, not empty, in which special tokens are not looked for."""

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""


class _Source(NamedTuple):
    """What a TextModel is built from; `pre_tokenizer` overrides the file's rule."""

    reader: GGUFReader
    table: TokenTable
    special: SpecialTokens
    pre_tokenizer: str | None


_TEXT_MODELS: Mapping[str, Callable[[_Source], TextModel]] = {
    "gpt2": lambda source: ByteLevelBpe(source.reader, source.table, source.pre_tokenizer),
    "llama": lambda source: SpmBpe(source.reader, source.table, source.special.unk_id),
}


class Vocabulary:
    """Token ids and texts of one model. Safe to share among threads.

    Attributes:
        size: number of tokens; ids are 0 to size − 1.
        model: the kind of vocabulary, as `tokenizer.ggml.model` names it.
        special: the ids that have a meaning, among them those that end a generation.
        add_bos, add_eos: what `encode` adds with `add_special`.
        add_space_prefix: whether `encode` puts a space before text, which `decode` takes away.
    """

    def __init__(self, source: _Source, model: str) -> None:
        self._table = source.table
        self._text_model = _TEXT_MODELS[model](source)
        self._bytes: list[bytes | None] = [None] * len(source.table)
        self.size = len(source.table)
        self.model = model
        self.special = source.special
        self.add_bos = _adds(source.reader, "bos", self._text_model.add_bos, self.special.bos_id)
        self.add_eos = _adds(source.reader, "eos", self._text_model.add_eos, self.special.eos_id)
        self.add_space_prefix = self._text_model.add_space_prefix
        strip_after = self._strip_after(source.reader)
        self._plain = self._splitter(frozenset((TokenKind.USER_DEFINED,)), strip_after)
        self._parsing = self._splitter(_VERBATIM, strip_after)

    @classmethod
    def from_gguf(cls, reader: GGUFReader, *, pre_tokenizer: str | None = None) -> Self:
        """Build from a file's `tokenizer.*`, which may have no tensors; `pre_tokenizer` overrides the rule it names.

        Raises ModelFileError for a kind of vocabulary or a rule that is not known, and for whatever does not fit.
        """
        model = reader.get_str(MODEL_KEY)
        if model not in _TEXT_MODELS:
            known = ", ".join(_TEXT_MODELS)
            raise ModelFileError(reader.name, MODEL_KEY, model, f"this kind of vocabulary is not supported: {known}")
        special = SpecialTokens.from_gguf(reader)
        table = TokenTable.from_gguf(reader, special)
        return cls(_Source(reader, table, special, pre_tokenizer), model)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds begin- and end-of-text as the model asks. Control tokens spelled in the text stay text
        unless `parse_special`; user-defined ones are always taken as such. Raises InvalidArgumentError for text that
        is not Unicode (lone surrogates).
        """
        if not text.isascii():
            _check_unicode(text)
        ids = self._added_bos if add_special else []
        for part in (self._parsing if parse_special else self._plain).split(text):
            ids += [part] if isinstance(part, int) else self._text_model.encode(part)
        return ids + self._added_eos if add_special else ids

    def encode_chat(self, text: str, concealed: Mapping[int, str]) -> list[int]:
        """Token ids of a rendered conversation, in which special tokens are taken as such.

        `concealed` is a table for str.translate that restores the characters of those that are text (SpecialGuard).
        Begin- and end-of-text are added as the model asks, unless the text has them already.
        Source: llama.cpp, tools/server and common/chat.cpp: a template's own begin-of-text gives way to the model's.
        """
        text = text.removeprefix(self.bos_text) if self.add_bos else text
        text = text.removesuffix(self.eos_text) if self.add_eos else text
        ids = self._added_bos
        for part in self._parsing.split(text):
            ids += [part] if isinstance(part, int) else self._text_model.encode(part.translate(concealed))
        return ids + self._added_eos

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of a whole sequence of tokens, without the space that `encode` puts before it.

        Bytes that are not UTF-8 become U+FFFD. Raises InvalidArgumentError for an id that is not in the vocabulary.
        """
        ids = self._rendered_ids(ids, skip_special)
        text = self._join(ids)
        is_prefixed = self.add_space_prefix and bool(ids) and self._table.kinds[ids[0]] is TokenKind.NORMAL
        return text.removeprefix(" ") if is_prefixed else text

    def decode_continuation(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text that tokens add to a prompt: as `decode`, with every space."""
        return self._join(self._rendered_ids(ids, skip_special))

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """The bytes a token stands for; a special token's are its spelling, with `skip_special` none, and an unused
        one's none. An id that is not in the vocabulary gives U+FFFD, since models pad their embeddings. Never raises.
        """
        if not 0 <= token_id < self.size:
            return _REPLACEMENT
        if skip_special and self._table.kinds[token_id] in _SPECIAL:
            return b""
        found = self._bytes[token_id]
        if found is None:
            found = self._bytes[token_id] = self._spelled(token_id)
        return found

    def kind(self, token_id: int) -> TokenKind:
        """What the token is. Raises InvalidArgumentError for an id that is not in the vocabulary."""
        self._check_id(token_id)
        return self._table.kinds[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether the token is no text: a control token or the unknown one."""
        return self.kind(token_id) in _SPECIAL

    def token_id(self, spelling: str) -> int | None:
        """The token with this spelling in the file, such as <|im_end|>."""
        return self._table.ids.get(spelling)

    @property
    def bos_text(self) -> str:
        """How begin-of-text is spelled; "" where the model has none."""
        return "" if self.special.bos_id is None else self._table.texts[self.special.bos_id]

    @property
    def eos_text(self) -> str:
        """How end-of-text is spelled; "" where the model has none."""
        return "" if self.special.eos_id is None else self._table.texts[self.special.eos_id]

    def special_spellings(self) -> list[str]:
        """How the tokens are spelled that steer the model or its machinery, and that no user's text may give."""
        ids = {*self._table.of_kind(*_SPECIAL), *self.special.is_control}
        return [text for token_id in sorted(ids) if (text := self._table.texts[token_id])]

    def user_defined_spellings(self) -> list[str]:
        """How the tokens are spelled that any text gives, before anything else is looked for in it."""
        return [self._table.texts[token_id] for token_id in self._table.of_kind(TokenKind.USER_DEFINED)]

    @property
    def _added_bos(self) -> list[int]:
        return [self.special.bos_id] if self.add_bos and self.special.bos_id is not None else []

    @property
    def _added_eos(self) -> list[int]:
        return [self.special.eos_id] if self.add_eos and self.special.eos_id is not None else []

    def token_spelling(self, token_id: int) -> str:
        """The token as the file spells it. Raises InvalidArgumentError for an id that is not in the vocabulary."""
        self._check_id(token_id)
        return self._table.texts[token_id]

    def _spelled(self, token_id: int) -> bytes:
        kind, text = self._table.kinds[token_id], self._table.texts[token_id]
        if kind in _VERBATIM:
            return text.encode("utf-8")
        if kind is TokenKind.BYTE:
            return bytes([self._table.byte_value(token_id)])
        return b"" if kind is TokenKind.UNUSED else self._text_model.text_bytes(text)

    def _rendered_ids(self, ids: Iterable[int], skip_special: bool) -> list[int]:
        return [token_id for token_id in ids if not (self.is_special(token_id) and skip_special)]

    def _join(self, ids: list[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.size:
            raise InvalidArgumentError("token_ids", token_id, f"must be 0 to {self.size - 1}")

    def _splitter(self, kinds: frozenset[TokenKind], strip_after: frozenset[int]) -> SpecialSplitter:
        texts = {self._table.texts[token_id]: token_id for token_id in self._table.of_kind(*kinds)}
        texts.pop("", None)
        return SpecialSplitter(texts, strip_after)

    def _strip_after(self, reader: GGUFReader) -> frozenset[int]:
        """Phi-3's special tokens take the white space after them, which the file does not say.

        Source: llama.cpp, `llama_vocab::impl::load`, "Handle per token attributes".
        """
        name = reader.get_str("general.name", "").lower()
        if "phi-3" not in name and "phi3" not in name:
            return frozenset()
        exempt = {self.token_id(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        return frozenset(self._table.of_kind(*_VERBATIM)) - exempt


def _adds(reader: GGUFReader, name: str, default: bool, token_id: int | None) -> bool:
    key = f"tokenizer.ggml.add_{name}_token"
    if key in reader and reader.get_bool(key) and token_id is None:
        reader.refuse(key, f"the file has no tokenizer.ggml.{name}_token_id")
    return reader.get_bool(key, default) and token_id is not None


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("text", text[error.start], "text must be Unicode, without lone surrogates") from None
