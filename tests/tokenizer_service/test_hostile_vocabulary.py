"""Vocabularies that do not fit: one error each, with file, field, value and limit."""

from __future__ import annotations

from typing import Any

import pytest

from service_common.errors import ModelFileError
from service_common.token_table import MAX_TOKEN_BYTES
from tests.tokenizer_service.vocabulary_builder import (
    bpe_keys,
    character_bpe_keys,
    rwkv_keys,
    spm_keys,
    unigram_keys,
    vocabulary,
    word_piece_keys,
)

_EMPTY: list[str] = []
_SPM = spm_keys()
_TOKENS = "tokenizer.ggml.tokens"
_HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": (spm_keys(model="hybriddna"), r"tokenizer\.ggml\.model is hybriddna; .* not supported"),
    "kind absent": (spm_keys(model=None), r"tokenizer\.ggml\.model is absent"),
    "unknown rule": (bpe_keys(pre="new-rule"), r"tokenizer\.ggml\.pre is new-rule; this pre-tokenizer rule"),
    "no tokens": (spm_keys(tokens=_EMPTY), r"tokens is an array of 0 values; a vocabulary has at least one"),
    "tokens absent": (spm_keys(tokens=None), r"tokens is absent"),
    "tokens of numbers": (spm_keys(tokens=[1, 2]), r"must be an array of strings"),
    "fewer scores": (spm_keys(scores=_SPM["tokenizer.ggml.scores"][:-1]), r"length of .*scores is 301; must be 302"),
    "more types": (spm_keys(token_type=[*_SPM["tokenizer.ggml.token_type"], 1]), r"length of .*token_type is 303"),
    "unknown type": (spm_keys(token_type=[9, *_SPM["tokenizer.ggml.token_type"][1:]]), r"token_type is 9; .* 1 to 6"),
    "score not a number": (spm_keys(scores=[float("nan")] * 302), r"scores\[0\] is nan; must be finite"),
    "bos too high": (spm_keys(bos_token_id=302), r"bos_token_id is 302; must be 0 to 301"),
    "eos negative": (bpe_keys(eos_token_id=-1), r"eos_token_id is -1; must be 0 to 272"),
    "unk of 2^32-1": (spm_keys(unknown_token_id=2**32 - 1), r"unknown_token_id is 4294967295"),
    "bos wanted, none there": (bpe_keys(bos_token_id=None, add_bos_token=True), r"add_bos_token is True; the file has"),
    "duplicate": (spm_keys(tokens=[*_SPM[_TOKENS][:-1], "▁the"]), r"tokens\[301\] is .*; a token may stand only once"),
    "huge token": (spm_keys(tokens=[*_SPM[_TOKENS][:-1], "x" * 2**20]), rf"1048576; must be at most {MAX_TOKEN_BYTES}"),
    "token not UTF-8": (spm_keys(tokens=[*_SPM[_TOKENS][:-1], b"\xff"]), r"tokens\[301\] is .*; must be UTF-8"),
    "byte token -1": (spm_keys(tokens=[*_SPM[_TOKENS][:3], "<0x-1>", *_SPM[_TOKENS][4:]]), r"tokens\[3\] is <0x-1>"),
    "byte token ZZ": (spm_keys(tokens=[*_SPM[_TOKENS][:3], "<0xZZ>", *_SPM[_TOKENS][4:]]), r"tokens\[3\] is <0xZZ>"),
    "byte token 100": (spm_keys(tokens=[*_SPM[_TOKENS][:3], "<0x100>", *_SPM[_TOKENS][4:]]), r"spelled <0x00> to"),
    "merges absent": (bpe_keys(merges=None), r"merges is absent"),
    "merge of unknown": (bpe_keys(merges=["h e", "q zz"]), r"merges\[1\] is q zz; must be two tokens"),
    "merge to unknown": (bpe_keys(merges=["q z"]), r"merges\[0\] is q z"),
    "merge without a space": (bpe_keys(merges=["he"]), r"merges\[0\] is he"),
    "empty merge": (bpe_keys(merges=[""]), r"merges\[0\] is "),
    "separator too high": (word_piece_keys(seperator_token_id=99), r"seperator_token_id is 99; must be 0 to"),
    "separator wanted, none there": (
        word_piece_keys(seperator_token_id=None, add_sep_token=True),
        r"add_sep_token is True; the file has no tokenizer\.ggml\.seperator_token_id",
    ),
    "map of characters": (unigram_keys(precompiled_charsmap=b"\0" * 9), r"precompiled_charsmap is an array of 9 bytes"),
    "unigram score infinite": (unigram_keys(scores=[float("-inf")] * 45), r"scores\[0\] is -inf; must be finite"),
    "unigram scores missing": (unigram_keys(scores=[0.0] * 4), r"length of .*scores is 4; must be 45"),
    "long unigram token": (
        unigram_keys(tokens=[*unigram_keys()[_TOKENS][:-2], "x" * 257, "<extra_id_0>"]),
        r"tokens\[43\] is .*; a token of this kind of vocabulary has at most 256 characters",
    ),
    "long RWKV token": (
        rwkv_keys(tokens=[*rwkv_keys()[_TOKENS][:-1], "x" * 257]),
        r"tokens\[263\] is .*at most 256 bytes",
    ),
    "characters' merge of unknown": (character_bpe_keys(merges=["q z"]), r"merges\[0\] is q z; must be two tokens"),
    "characters' merges absent": (character_bpe_keys(merges=None), r"merges is absent"),
    "many long tokens": (
        spm_keys(tokens=[f"{n:04}" + "x" * 4000 for n in range(302)], token_type=None),
        r"squared lengths of tokenizer\.ggml\.tokens is \d+; must be at most",
    ),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_vocabularies_are_refused(name: str) -> None:
    """A vocabulary that does not fit gives one error that names file, field, value and limit."""
    keys, message = _HOSTILE[name]
    with pytest.raises(ModelFileError, match=message) as caught:
        vocabulary(keys)
    assert str(caught.value).startswith("tiny.gguf: ")
