"""Which tokens of a vocabulary mean something to the machinery: begin of text, end of generation, and the like.

Follows llama.cpp, src/llama-vocab.cpp (as of llama-cpp-python 0.3.36), `llama_vocab::impl::load`, with four departures.
An id outside the vocabulary is an error instead of a warning. Where a file does not name its end-of-turn token and
several texts would do, the first of `_END_OF_TURN` is taken instead of the first in hash order. Only Falcon's rule
presumes ids for byte-level vocabularies, which llama.cpp presumes for all of them. And a token that the file calls
normal and that its merges can give is text, whatever it spells: Qwen2's </s> is an HTML tag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader

TOKENS_KEY = "tokenizer.ggml.tokens"
MODEL_KEY = "tokenizer.ggml.model"
PRE_KEY = "tokenizer.ggml.pre"
TYPES_KEY = "tokenizer.ggml.token_type"
MERGES_KEY = "tokenizer.ggml.merges"

_NORMAL = 1  # of tokenizer.ggml.token_type

_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
_END_OF_MESSAGE = ("<|eom_id|>",)
_END_OF_GENERATION = (
    *_END_OF_TURN,
    *_END_OF_MESSAGE,
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
_FIM_PAD = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")
_FIM_REPO = ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
_FIM_SEPARATOR = ("<|file_sep|>",)
_FIM_PARTS = (
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
    *("<|code_prefix|>", "<|prefix|>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
    *("<|code_suffix|>", "<|suffix|>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
    *("<|code_middle|>", "<|middle|>"),
)
_CONTROL = frozenset((*_END_OF_GENERATION, *_FIM_PAD, *_FIM_REPO, *_FIM_SEPARATOR, *_FIM_PARTS))
# The harmony format (gpt-oss) marks up its text with these; llama.cpp renders them so that it can be parsed.
_MARKUP = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))
# Where all of a row are in the vocabulary, <|end|> closes a message and not the generation (gpt-oss, Solar Open).
_END_IS_NO_STOP = (
    ("<|return|>", "<|call|>"),
    ("<|return|>", "<|calls|>"),
    ("<|flush|>", "<|call|>"),
    ("<|flush|>", "<|calls|>"),
)


# Beside either of these, </s> is an HTML tag (Gemma 4, PLaMo).
_END_TAG_IS_NO_STOP = ("<|tool_response>", "<|plamo:eos|>")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The ids that a GGUF file gives a meaning. None: the vocabulary has no such token.

    Attributes:
        bos_id, eos_id, eot_id, eom_id: begin of text, end of text, of turn, of message. BERT's classifier token is its
            begin of text.
        sep_id: stands between two texts, and after one.
        unk_id: unknown text.
        eog_ids: every id that ends a generation.
        is_control: for ids whose text decides it, whether they are control tokens, whatever type the file gives.
    """

    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    eom_id: int | None
    sep_id: int | None
    unk_id: int | None
    eog_ids: frozenset[int]
    is_control: Mapping[int, bool]

    @classmethod
    def from_gguf(cls, reader: GGUFReader) -> Self:
        """Read the ids, then what the texts tell.

        Raises ModelFileError for an empty vocabulary, and an id outside it.
        """
        tokens = reader.get_array(TOKENS_KEY, str)
        if not tokens:
            reader.refuse(TOKENS_KEY, "a vocabulary has at least one token")
        known = _CONTROL | _MARKUP
        ids = {text: token_id for token_id, text in enumerate(tokens) if text in known}
        for text in _plain_texts(reader, ids):
            del ids[text]
        if not set(_END_TAG_IS_NO_STOP).isdisjoint(tokens):
            ids.pop("</s>", None)
        return cls._from_ids(_IdReader(reader, len(tokens)), ids)

    @classmethod
    def _from_ids(cls, reader: _IdReader, ids: Mapping[str, int]) -> Self:
        eos_id = reader.id("eos")
        eot_id = reader.id("eot", _found(_END_OF_TURN, ids))
        eom_id = reader.id("eom", _found(_END_OF_MESSAGE, ids))
        eog_ids = {ids[text] for text in _END_OF_GENERATION if text in ids} | {
            reader.id("fim_pad", _found(_FIM_PAD, ids)),
            reader.id("fim_rep", _found(_FIM_REPO, ids)),
            reader.id("fim_sep", _found(_FIM_SEPARATOR, ids)),
            *(eos_id, eot_id, eom_id),
        }
        is_control = {token_id: text not in _MARKUP for text, token_id in ids.items()}
        if any(all(text in ids for text in row) for row in _END_IS_NO_STOP) and "<|end|>" in ids:
            eog_ids.discard(ids["<|end|>"])
            is_control[ids["<|end|>"]] = False
        return cls(
            bos_id=reader.id("bos", reader.id("cls")),
            eos_id=eos_id,
            eot_id=eot_id,
            eom_id=eom_id,
            sep_id=reader.id("seperator"),  # as the format spells it
            unk_id=reader.id("unknown"),
            eog_ids=frozenset(token_id for token_id in eog_ids if token_id is not None),
            is_control=MappingProxyType(is_control),
        )


class _IdReader:
    """Reads `tokenizer.ggml.*_token_id`; an absent one has the default of its kind of vocabulary and rule."""

    _DEFAULTS: Mapping[tuple[str, str], Mapping[str, int]] = {
        ("llama", ""): {"bos": 1, "eos": 2, "unknown": 0},
        ("t5", ""): {"eos": 1, "unknown": 2},
        ("bert", ""): {"cls": 101, "seperator": 102, "unknown": 100},
        ("gpt2", "falcon"): {"bos": 11, "eos": 11},
    }

    def __init__(self, reader: GGUFReader, vocab_size: int) -> None:
        self._reader = reader
        self._vocab_size = vocab_size
        model = reader.get_str(MODEL_KEY)
        rule = reader.get_str(PRE_KEY, "") if model == "gpt2" else ""
        self._defaults = self._DEFAULTS.get((model, rule), {})

    def id(self, name: str, default: int | None = None) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key in self._reader:
            return self._checked(key)
        default = self._defaults.get(name, default)
        return None if default is None or default >= self._vocab_size else default

    def _checked(self, key: str) -> int:
        token_id = self._reader.get_int(key, minimum=-(2**63))
        if not 0 <= token_id < self._vocab_size:
            limit = f"must be 0 to {self._vocab_size - 1}, an id of {TOKENS_KEY}"
            raise ModelFileError(self._reader.name, key, token_id, limit)
        return token_id


def _plain_texts(reader: GGUFReader, ids: Mapping[str, int]) -> set[str]:
    """Those of the texts that are normal tokens which merges can give."""
    if TYPES_KEY not in reader or MERGES_KEY not in reader:
        return set()
    types = reader.get_array(TYPES_KEY, int)
    normal = {text for text, token_id in ids.items() if token_id < len(types) and types[token_id] == _NORMAL}
    merges = reader.get_array(MERGES_KEY, str) if normal else ()
    return normal & {merge[:1] + merge[1:].replace(" ", "", 1) for merge in merges}


def _found(texts: Sequence[str], ids: Mapping[str, int]) -> int | None:
    return next((ids[text] for text in texts if text in ids), None)
