"""Which algorithm a kind of vocabulary has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from service_common.errors import ConfigError, ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import MODEL_KEY, PRE_KEY, SpecialTokens
from service_common.token_table import TokenTable
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.byte_level_bpe import ByteLevelBpe
from tokenizer_service.character_bpe import CharacterBpe
from tokenizer_service.offsets import Encoded
from tokenizer_service.pre_tokenizers import CHARACTER_RULES, PRE_TOKENIZERS
from tokenizer_service.rwkv import Rwkv
from tokenizer_service.spm_bpe import SpmBpe
from tokenizer_service.unigram import Unigram
from tokenizer_service.word_piece import WordPiece


class TextModel(Protocol):
    """The algorithm of one kind of vocabulary."""

    @property
    def added(self) -> AddedByDefault:
        """The tokens that are put around a text where the file does not say."""

    @property
    def add_space_prefix(self) -> bool:
        """Whether `encode` puts a space before its text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, not empty, in which special tokens are not looked for."""

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for."""

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""


class Source(NamedTuple):
    """What a TextModel is built from; `pre_tokenizer` overrides the file's rule."""

    reader: GGUFReader
    table: TokenTable
    special: SpecialTokens
    pre_tokenizer: str | None


def build_text_model(source: Source) -> TextModel:
    """The algorithm that `tokenizer.ggml.model` names.

    Raises ModelFileError for a kind of vocabulary or a rule that is not known, and for whatever does not fit;
    ConfigError for an override that is not known, or that this kind of vocabulary has no use for.
    """
    model, override = source.reader.get_str(MODEL_KEY), source.pre_tokenizer
    if model not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise ModelFileError(source.reader.name, MODEL_KEY, model, f"this kind of vocabulary is not supported: {known}")
    if override is not None:
        _check_override(override, model)
    return _BUILDERS[model](source)


def _check_override(rule: str, model: str) -> None:
    if model not in _RULED:
        raise ConfigError(f"--pre-tokenizer is {rule}; a vocabulary of kind {model} has no such rule: leave it out")
    known = {*PRE_TOKENIZERS, *CHARACTER_RULES}
    if rule not in known:
        raise ConfigError(f"--pre-tokenizer is {rule}; the rules are {', '.join(sorted(known))}")


def _build_bpe(source: Source, rule: str | None = None) -> TextModel:
    """`rule` is the one to follow where none is asked for; None: the file's."""
    rule = source.pre_tokenizer or rule or source.reader.get_str(PRE_KEY, "default")
    if rule in CHARACTER_RULES:
        return CharacterBpe(source.reader, source.table, CHARACTER_RULES[rule])
    if rule in PRE_TOKENIZERS:
        return ByteLevelBpe(source.reader, source.table, PRE_TOKENIZERS[rule])
    limit = "this pre-tokenizer rule is not known; --pre-tokenizer names another one to be used in its place"
    raise ModelFileError(source.reader.name, PRE_KEY, rule, limit)


_RULED = frozenset(("gpt2", "gemma4", "whitespace"))  # kinds whose text is cut by a rule first
_BUILDERS: Mapping[str, Callable[[Source], TextModel]] = {
    "gpt2": _build_bpe,
    "gemma4": lambda source: _build_bpe(source, "gemma4"),
    "whitespace": lambda source: _build_bpe(source, "whitespace"),
    "llama": lambda source: SpmBpe(source.reader, source.table, source.special.unk_id),
    "t5": lambda source: Unigram(source.reader, source.table, source.special.unk_id),
    "bert": lambda source: WordPiece(source.reader, source.table, source.special.unk_id),
    "rwkv": lambda source: Rwkv(source.table, source.special.unk_id),
}
