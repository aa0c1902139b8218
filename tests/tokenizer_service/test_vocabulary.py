"""Vocabularies: text to ids as llama.cpp has them, and ids to text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from service_common.errors import InvalidArgumentError
from service_common.gguf_reader import GGUFReader
from service_common.token_table import TokenKind
from tests.tokenizer_service.vocabulary_builder import bpe_keys, random_text, spm_keys, vocabulary, with_tokens
from tokenizer_service.spm_bpe import merge_by_score
from tokenizer_service.vocabulary import Vocabulary

_SEPARATOR = "\n__ggml_vocab_test__\n"
_EMPTY: list[str] = []


@pytest.mark.parametrize("name", ["bert-bge", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_real_vocabularies_give_llama_cpps_ids(shared_data: Path, name: str) -> None:
    """Every test text of a real vocabulary gives exactly llama.cpp's ids, and the ids give the text back, unless words
    are all that is encoded of it."""
    file = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    tokens = Vocabulary.from_gguf(GGUFReader(file))
    texts = Path(f"{file}.inp").read_bytes().decode().split(_SEPARATOR)
    expected = [[*map(int, line.split())] for line in Path(f"{file}.out").read_text().split("\n")]
    assert len(texts) == len(expected) > 40
    for text, ids in zip(texts, expected, strict=True):
        assert tokens.encode(text, add_special=False) == ids, repr(text)
        assert tokens.decode(ids) == text or name == "bert-bge"


def test_token_count_is_the_files(shared_data: Path) -> None:
    """The vocabulary's size comes from the file, with no constant for any model. (GGUF-5)"""
    assert vocabulary(bpe_keys()).size == 273
    assert Vocabulary.from_gguf(GGUFReader(shared_data / "models" / "stories260K.gguf")).size == 512


def test_byte_level_round_trip_is_exact() -> None:
    """Any of 100,000 random Unicode texts survives encode and decode of a byte-level vocabulary."""
    tokens, rng = vocabulary(bpe_keys()), random.Random(1)
    for _ in range(100_000):
        text = random_text(rng)
        assert tokens.decode(tokens.encode(text, add_special=False)) == text


def test_spm_round_trip_is_exact() -> None:
    """Any Unicode text without the sign for a space survives encode and decode of a SentencePiece vocabulary."""
    tokens, rng = vocabulary(spm_keys()), random.Random(2)
    for _ in range(5000):
        text = random_text(rng).replace("▁", "")
        assert tokens.decode(tokens.encode(text)) == text


def test_merges_apply_in_order_of_rank() -> None:
    """Merges join letters to the longest tokens they lead to, and words keep the space before them."""
    tokens = vocabulary(bpe_keys())
    assert [tokens.token_spelling(token_id) for token_id in tokens.encode("hello world")] == ["hello", "Ġworld"]


def test_spm_merges_the_best_score_first_and_falls_back_to_bytes() -> None:
    """SentencePiece tokens form by score, a space comes first, and a character without a token becomes bytes."""
    tokens = vocabulary(spm_keys())
    spelled = [tokens.token_spelling(token_id) for token_id in tokens.encode("the é", add_special=False)]
    assert spelled == ["▁the", "▁", "<0xC3>", "<0xA9>"]


def test_spm_ranks_equal_the_definition(shared_data: Path) -> None:
    """Merging by ranks in the tokenizers library gives what merging by scores, as defined, gives."""
    scores = {"▁a": 3.0, "aa": 2.0, "aaa": 1.0, "▁▁": -9.0, "▁▁▁": -9.0, "▁▁▁▁▁": -9.0, "ba": 0.5, "aba": 0.25}
    text_tokens = {**dict.fromkeys("▁ab", -100.0), **scores}
    keys = spm_keys(
        tokens=["<unk>", *text_tokens],
        scores=[0.0, *text_tokens.values()],
        token_type=[2, *[1] * len(text_tokens)],
        bos_token_id=None,
        eos_token_id=None,
        add_bos_token=None,
    )
    tokens, rng = vocabulary(keys), random.Random(3)
    for _ in range(3000):
        text = "".join(rng.choice(" ab") * rng.choice((1, 1, 2, 3, 7)) for _ in range(rng.randrange(1, 9)))
        ids = tokens.encode(text, add_special=False)
        assert [tokens.token_spelling(token_id) for token_id in ids] == merge_by_score(
            "▁" + text.replace(" ", "▁"), text_tokens
        )


def test_equal_scores_merge_from_the_left() -> None:
    """Where different tokens have equal scores the leftmost pair merges first, as in SentencePiece."""
    keys = spm_keys(
        tokens=["<unk>", "a", "b", "c", "bc", "ab"],
        scores=[0.0] * 6,
        token_type=[2, *[1] * 5],
        add_space_prefix=False,
        bos_token_id=None,
        eos_token_id=None,
        add_bos_token=None,
    )
    tokens = vocabulary(keys)
    assert [tokens.token_spelling(token_id) for token_id in tokens.encode("abcbcabc", add_special=False)] == [
        "ab",
        "c",
        "bc",
        "ab",
        "c",
    ]
    assert tokens.encode("aé", add_special=False) == [1, 0]


@pytest.mark.parametrize("keys", [spm_keys(), bpe_keys()])
def test_control_tokens_in_text_stay_text(keys: dict[str, Any]) -> None:
    """A control token spelled in the text stays text, and becomes the token only when that is asked for."""
    tokens = vocabulary(keys)
    eos = tokens.special.eos_id
    assert eos is not None
    text = f"a{tokens.token_spelling(eos)}the"
    plain = tokens.encode(text, add_special=False)
    assert eos not in plain
    assert tokens.decode(plain, skip_special=False) == text
    assert tokens.encode(text, add_special=False, parse_special=True).count(eos) == 1


def test_pairs_never_give_a_control_token() -> None:
    """Even a control token that two tokens of the text would join to does not come from text."""
    keys = with_tokens(spm_keys(), {"</": TokenType.NORMAL, "s>": TokenType.NORMAL, "<": TokenType.NORMAL})
    keys = with_tokens(keys, {"/": TokenType.NORMAL, ">": TokenType.NORMAL})
    tokens = vocabulary(keys)
    spelled = [tokens.token_spelling(token_id) for token_id in tokens.encode("</s>", add_special=False)]
    assert spelled == ["▁", "</", "s>"]


def test_user_defined_tokens_are_always_found() -> None:
    """User-defined tokens are cut out of the text first, the longest of those that start together."""
    tokens = vocabulary(with_tokens(bpe_keys(), {"<tool><tool>": TokenType.USER_DEFINED}))
    one, two = tokens.token_id("<tool>"), tokens.token_id("<tool><tool>")
    assert tokens.encode("<tool><tool><tool>") == [two, one]
    assert tokens.decode([one, two] if one and two else []) == "<tool><tool><tool>"


def test_text_after_a_special_token_gets_the_space_prefix() -> None:
    """In a SentencePiece vocabulary every stretch of text between special tokens starts with a space, as the first."""
    tokens = vocabulary(spm_keys())
    ids = tokens.encode("the</s>the", parse_special=True)
    assert [tokens.token_spelling(token_id) for token_id in ids] == ["<s>", "▁the", "</s>", "▁the"]


def test_phi3_special_tokens_take_the_space_after_them() -> None:
    """In a Phi-3 vocabulary white space after a special token belongs to it, except after begin-of-text."""
    keys = with_tokens(spm_keys(), {"<|end|>": TokenType.CONTROL}) | {"general.name": "Phi-3 mini"}
    tokens = vocabulary(keys)
    assert tokens.encode("<|end|> \n the", parse_special=True) == tokens.encode("<|end|>the", parse_special=True)
    assert tokens.encode("<s> the", parse_special=True) != tokens.encode("<s>the", parse_special=True)


@pytest.mark.parametrize(
    ("keys", "added"),
    [
        (spm_keys(), [1]),
        (spm_keys(add_bos_token=None), [1]),
        (spm_keys(add_bos_token=False), _EMPTY),
        (spm_keys(add_bos_token=False, add_eos_token=True), [2]),
        (bpe_keys(), _EMPTY),
        (bpe_keys(add_bos_token=True), [270]),
        (bpe_keys(pre="llama-bpe"), [270]),
        (bpe_keys(pre="llama-bpe", add_bos_token=False), _EMPTY),
    ],
)
def test_begin_and_end_of_text_are_added_as_the_file_says(keys: dict[str, Any], added: list[int]) -> None:
    """add_bos_token and add_eos_token decide, the rule of the vocabulary where they are absent; an empty text too."""
    tokens = vocabulary(keys)
    assert tokens.encode("") == added
    assert tokens.encode("", add_special=False) == []


def test_space_prefix_can_be_switched_off() -> None:
    """With add_space_prefix false neither encode adds a space nor decode takes one away."""
    tokens = vocabulary(spm_keys(add_space_prefix=False))
    assert tokens.decode(tokens.encode(" the")) == " the"
    assert tokens.token_spelling(tokens.encode("the", add_special=False)[0]) == "t"


def test_decode_takes_one_space_and_continuation_none() -> None:
    """decode gives back the text that was encoded; decode_continuation gives what follows a prompt, space included."""
    tokens = vocabulary(spm_keys())
    ids = tokens.encode(" the")
    assert tokens.decode(ids) == " the"
    assert tokens.decode_continuation(ids) == "  the"
    assert tokens.decode(ids, skip_special=False) == "<s>  the"


def test_bytes_that_are_not_utf8_become_replacement_characters() -> None:
    """Decoding never fails on bytes; each malformed sequence becomes U+FFFD."""
    tokens = vocabulary(spm_keys())
    ids = [tokens.token_id("<0xE2>"), tokens.token_id("<0x82>"), tokens.token_id("t"), tokens.token_id("<0xFF>")]
    assert tokens.decode([token_id for token_id in ids if token_id is not None]) == "\ufffdt\ufffd"


@pytest.mark.parametrize("token_id", [-1, 302, 2**40])
def test_ids_outside_the_vocabulary_are_refused_or_replaced(token_id: int) -> None:
    """decode refuses an unknown id and names it; token_bytes, which streams use, gives U+FFFD."""
    tokens = vocabulary(spm_keys())
    with pytest.raises(InvalidArgumentError, match=rf"token_ids\[1\] is {token_id}; must be 0 to 301"):
        tokens.decode([3, token_id])
    assert tokens.token_bytes(token_id) == "\ufffd".encode()


def test_token_bytes_follow_the_kind() -> None:
    """Letters and byte tokens stand for bytes, special tokens for their spelling, unused ones for nothing."""
    spm, bpe = vocabulary(spm_keys()), vocabulary(with_tokens(bpe_keys(), {"日本": TokenType.NORMAL}))
    assert [spm.token_bytes(token_id) for token_id in (2, 3 + 0xE2)] == [b"</s>", b"\xe2"]
    assert spm.token_bytes(2, skip_special=True) == b""
    assert spm.token_bytes(spm.encode("the")[1]) == b" the"
    assert bpe.token_bytes(bpe.token_id("Ġworld") or 0) == b" world"
    assert bpe.token_bytes(bpe.token_id("[UNUSED]") or 0) == b""
    assert bpe.token_bytes(bpe.token_id("日本") or 0) == "日本".encode()
    assert bpe.kind(270) is TokenKind.CONTROL
    assert bpe.is_special(270)
    assert not bpe.is_special(271)


def test_end_of_generation_is_found_by_id_and_by_text() -> None:
    """Every id that the file names, and every token that is known to end a turn, ends generation and is control."""
    added = {"<|im_end|>": TokenType.NORMAL, "<|eom_id|>": TokenType.USER_DEFINED, "<|fim_pad|>": TokenType.CONTROL}
    tokens = vocabulary(with_tokens(bpe_keys(), added))
    assert tokens.special.eog_ids == {270, 273, 274, 275}
    assert tokens.special.eot_id == 273
    assert all(tokens.is_special(token_id) for token_id in tokens.special.eog_ids)
    assert 273 not in tokens.encode("<|im_end|>")


def test_a_mergeable_token_that_spells_end_of_text_is_text() -> None:
    """A normal token that merges give is text, whatever it spells, and does not end generation."""
    tokens = vocabulary(bpe_keys())
    end_tag = tokens.token_id("</s>")
    assert end_tag is not None
    assert tokens.kind(end_tag) is TokenKind.NORMAL
    assert tokens.special.eog_ids == {270}
    assert tokens.encode("<s>x</s>", parse_special=True) == tokens.encode("<s>x</s>")


def test_harmony_messages_do_not_end_generation() -> None:
    """Where a vocabulary has the tokens of the harmony format, <|end|> closes a message only, and is rendered."""
    added = dict.fromkeys(["<|return|>", "<|call|>", "<|end|>", "<|channel|>"], TokenType.CONTROL)
    tokens = vocabulary(with_tokens(bpe_keys(), added))
    end, channel = tokens.token_id("<|end|>"), tokens.token_id("<|channel|>")
    assert tokens.special.eog_ids == {270, tokens.token_id("<|return|>"), tokens.token_id("<|call|>")}
    assert [tokens.kind(token_id) for token_id in (end, channel) if token_id] == [TokenKind.USER_DEFINED] * 2


def test_lone_surrogates_are_refused() -> None:
    """Text that is not Unicode is the caller's mistake, with a message."""
    with pytest.raises(InvalidArgumentError, match="surrogates"):
        vocabulary(bpe_keys()).encode("a\udc80")


def test_empty_tokens_are_kept_and_never_given() -> None:
    """Tokens with an empty spelling, of which some files have several, keep their ids and stand for no bytes."""
    tokens = vocabulary(spm_keys(tokens=[*spm_keys()["tokenizer.ggml.tokens"][:-2], "", ""]))
    assert tokens.size == 302
    assert tokens.token_bytes(301) == b""
    assert not {300, 301} & set(tokens.encode("the and"))


def test_merges_of_control_tokens_are_left_out() -> None:
    """Merges that lead to a control token are no error, and text does not become the token by them."""
    keys = with_tokens(bpe_keys(), {"qz": TokenType.CONTROL})
    tokens = vocabulary(keys | {"tokenizer.ggml.merges": [*keys["tokenizer.ggml.merges"], "q z"]})
    assert tokens.encode("qz") == tokens.encode("q") + tokens.encode("z")


@pytest.mark.parametrize("text", ["the", "<s>the", "the</s>", "<s>the</s>"])
def test_rendered_conversations_begin_and_end_as_the_model_asks(text: str) -> None:
    """Begin- and end-of-text of the template's own take the place of those that are added, as with llama.cpp."""
    tokens = vocabulary(spm_keys(add_eos_token=True))
    assert tokens.encode_chat(text, {}) == tokens.encode("the")
    assert tokens.encode_chat("a</s>b", {})[2] == 2


def test_concealed_special_tokens_are_put_back_as_text() -> None:
    """What a table stands for is looked for last, and joins the text around it as any text does."""
    tokens = vocabulary(bpe_keys())
    table = {0xE000: "<", 0xE001: "h"}
    assert tokens.encode_chat("<|endoftext|>\ue001ello \ue000|endoftext|>", table) == [
        tokens.token_id("<|endoftext|>"),
        *tokens.encode("hello <|endoftext|>", add_special=False),
    ]
