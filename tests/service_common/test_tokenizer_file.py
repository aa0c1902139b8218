"""The tokenizer file carries the tokenizer exactly, and nothing of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

from service_common.gguf_reader import GGUFReader
from service_common.tokenizer_file import tokenizer_file, vocab_sha256
from tests.gguf_builder import array_value, file_bytes, string, text_value, tiny_llama, u32_value

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def test_it_holds_the_tokenizer_and_no_tensors(tmp_path: Path) -> None:
    """Every general.* and tokenizer.* key is there with its bytes, in order; other keys and tensors are not (D1)."""
    path = tmp_path / "model.gguf"
    tiny_llama(path, seed=1, keys={"tokenizer.chat_template": TEMPLATE})
    with GGUFReader(path) as model:
        sent = GGUFReader.from_bytes(tokenizer_file(model), "tokenizer of the engine")
        expected = [key for key in model.key_values if key.startswith(("general.", "tokenizer."))]
        assert list(sent.key_values) == expected
        assert not sent.tensors
        for key in expected:
            assert sent.key_value_bytes(key) == model.key_value_bytes(key)
    assert sent.get_str("tokenizer.chat_template") == TEMPLATE
    assert "llama.block_count" not in sent


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two engines with the same file send the same bytes, so their sha256 agree; another vocabulary differs."""
    path = tmp_path / "model.gguf"
    tiny_llama(path, seed=1)
    with GGUFReader(path) as first, GGUFReader(path) as second:
        data = tokenizer_file(first)
        assert tokenizer_file(second) == data
    assert tokenizer_file(GGUFReader.from_bytes(data, "sent")) == data
    tiny_llama(path, seed=1, keys={"tokenizer.ggml.bos_token_id": 2})
    with GGUFReader(path) as other:
        assert vocab_sha256(tokenizer_file(other)) != vocab_sha256(data)


def test_bytes_that_are_not_text_arrive_unchanged() -> None:
    """A token of other bytes than UTF-8 is the same token on the other side."""
    tokens = array_value("tokenizer.ggml.tokens", GGUFValueType.STRING, 2, string(b"\xf0\x9f") + string("ok"))
    model = GGUFReader.from_bytes(file_bytes([text_value("general.architecture", "llama"), tokens]), "model")
    sent = GGUFReader.from_bytes(tokenizer_file(model), "sent")
    assert sent.get_array("tokenizer.ggml.tokens", str) == ["\udcf0\udc9f", "ok"]


def test_a_large_alignment_does_not_matter_without_tensors() -> None:
    """general.alignment is carried along although there is nothing to align."""
    model = GGUFReader.from_bytes(file_bytes([u32_value("general.alignment", 4096)]), "model")
    assert GGUFReader.from_bytes(tokenizer_file(model), "sent").get_int("general.alignment") == 4096


def test_the_digest_is_sha256_in_hexadecimal() -> None:
    """vocab_sha256 is what the sha256sum command prints."""
    assert vocab_sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "gpt-2", "qwen2", "phi-3", "bert-bge"])
def test_a_real_vocabulary_arrives_unchanged(name: str, shared_data: Path) -> None:
    """Tokens, types, scores and merges of a real vocabulary are the same on the other side."""
    with GGUFReader(shared_data / "vocab" / f"ggml-vocab-{name}.gguf") as file:
        sent = GGUFReader.from_bytes(tokenizer_file(file), "sent")
        assert sent.get_array("tokenizer.ggml.tokens", str) == file.get_array("tokenizer.ggml.tokens", str)
        np.testing.assert_array_equal(
            sent.get_array("tokenizer.ggml.token_type", int), file.get_array("tokenizer.ggml.token_type", int)
        )
        for key in ("tokenizer.ggml.scores", "tokenizer.ggml.merges"):
            assert (key in sent) == (key in file)
            if key in file:
                assert sent.key_value_bytes(key) == file.key_value_bytes(key)
