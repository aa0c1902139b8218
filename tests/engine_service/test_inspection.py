"""`clforge inspect` tells what a file holds, what it costs, and why it cannot be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from engine_service.host.inspection import ModelReport, inspect_model, render
from service_common.errors import ModelFileError
from tests.gguf_builder import array_value, file_bytes, string, text_value, tiny_llama, u32_value


def inspect(folder: Path, **changes: Any) -> ModelReport:
    """The report of a tiny model written with `changes`."""
    tiny_llama(folder / "model.gguf", **{"seed": 1, **changes})
    return inspect_model(folder / "model.gguf")


def test_it_counts_what_the_file_holds(tmp_path: Path) -> None:
    """Parameters, vocabulary, and tensors, bytes and ratio of each type are exact."""
    report = inspect(tmp_path, tensor_type=GGMLQuantizationType.Q8_0, hidden=64, ffn=96, tied=True)
    block = 3 * 64 * 96 + 2 * 64 * 64 + 2 * 32 * 64
    matrices = 302 * 64 + 2 * block
    vectors = 5 * 64
    assert report.problem is None
    assert report.num_parameters == matrices + vectors
    assert (report.architecture, report.name, report.context_length) == ("llama", "tiny llama 1", 256)
    assert (report.vocabulary_size, report.vocabulary_kind) == (302, "llama")
    assert not report.has_chat_template
    assert "chat template     none: plain dialogue" in render(report)
    q8_0, f32 = report.tensor_types
    assert (q8_0.type, q8_0.num_tensors, q8_0.file_bytes) == ("Q8_0", 15, matrices // 32 * 34)
    assert q8_0.device_bytes == (matrices + 2 * 64) // 32 * 34  # 302 rows are padded to 304
    assert (f32.type, f32.num_tensors, f32.file_bytes, f32.device_bytes) == ("F32", 5, vectors * 4, vectors * 4)
    assert q8_0.ratio == q8_0.device_bytes / q8_0.file_bytes


@pytest.mark.parametrize("tensor_type", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_the_device_takes_little_more_than_the_file(tensor_type: str, tmp_path: Path) -> None:
    """Device bytes are at most 1.15 times the file's for every common type (D8)."""
    shape = {"hidden": 256, "ffn": 512, "head_dim": 64}
    report = inspect(tmp_path, tensor_type=GGMLQuantizationType[tensor_type], **shape)
    ratios = {entry.type: entry.ratio for entry in report.tensor_types}
    assert ratios.keys() == {tensor_type, "F32"}
    assert all(ratio is not None and 1.0 <= ratio <= 1.15 for ratio in ratios.values())


def test_a_model_that_cannot_be_served_is_reported_with_the_reason(tmp_path: Path) -> None:
    """An unserved architecture still has its counts, no hyper-parameters, and says what is wrong."""
    report = inspect(tmp_path, arch="gpt2")
    assert report.hyperparameters is None
    assert report.problem is not None
    assert "general.architecture is gpt2; must be one of llama, qwen2" in report.problem
    assert report.context_length == 256
    assert "served            no: " in render(report)


def test_a_type_without_a_layout_has_no_device_bytes(tmp_path: Path) -> None:
    """Where a type cannot be loaded, its cost and the total are unknown, never guessed."""
    report = inspect(tmp_path, tensors={"extra": np.zeros((8, 32), np.int32)})
    by_type = {entry.type: entry for entry in report.tensor_types}
    assert by_type["I32"].device_bytes is None
    assert by_type["I32"].ratio is None
    assert by_type["F32"].device_bytes is not None
    table = render(report).splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["F32", "I32", "total"]
    assert "no layout" in table[1]
    assert "no layout" in table[2]


def test_unusable_keys_do_not_hide_the_rest(tmp_path: Path) -> None:
    """A file that says little, or says it in the wrong type, is still reported."""
    path = tmp_path / "odd.gguf"
    tokens = array_value("tokenizer.ggml.tokens", 8, 1, string("a"))
    path.write_bytes(file_bytes([u32_value("general.architecture", 7), tokens]))
    report = inspect_model(path)
    assert report.architecture is None
    assert report.vocabulary_size == 1
    assert report.problem is not None
    assert report.tensor_types == ()
    assert "architecture      not in the file" in render(report)


def test_a_file_that_is_no_gguf_raises(tmp_path: Path) -> None:
    """Inspecting something else is an error like any other use of it."""
    path = tmp_path / "text.gguf"
    path.write_text("hello, world")
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        inspect_model(path)


def test_text_shows_every_fact(tmp_path: Path) -> None:
    """The rendered report holds the hyper-parameters and the table with its total."""
    text = render(inspect(tmp_path, keys={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}))
    for line in (
        "architecture      llama",
        "vocabulary        302 tokens, llama",
        "num kv heads      2",
        "rope scaling      yarn × 4",
        "rms norm eps      1e-05",
        "served            yes",
    ):
        assert line in text.splitlines()
    assert text.splitlines()[-1].startswith("total")


def test_text_of_the_file_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    """Control characters in a model's name are not printed."""
    path = tmp_path / "name.gguf"
    path.write_bytes(file_bytes([text_value("general.name", "\x1b[2Jevil\n\x9b31m")]))
    text = render(inspect_model(path))
    assert "name              \ufffd[2Jevil\ufffd\ufffd31m" in text.splitlines()
    assert all(char == "\n" or char.isprintable() for char in text)


def test_json_has_the_fields_of_the_report(tmp_path: Path) -> None:
    """as_json is the report, nested hyper-parameters included."""
    report = inspect(tmp_path)
    parsed = json.loads(report.as_json())
    assert parsed["num_parameters"] == report.num_parameters
    assert parsed["hyperparameters"]["rope_scaling"]["kind"] == "none"
    assert parsed["tensor_types"][0]["device_bytes"] == report.tensor_types[0].device_bytes


def test_a_real_model_is_served(shared_data: Path) -> None:
    """The real model is reported as servable with its 292,800 parameters."""
    report = inspect_model(shared_data / "models" / "stories260K.gguf")
    assert report.problem is None
    assert report.num_parameters == 292_800
