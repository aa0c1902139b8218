"""Hyper-parameters come from the file, agree with its tensors, or the file is refused by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from engine_service.models.hyperparameters import Hyperparameters, RopeScaling
from engine_service.models.tensor_table import read_hyperparameters
from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from tests.gguf_builder import file_bytes, tiny_llama, u32_value


def read(path: Path, **changes: Any) -> Hyperparameters:
    """The hyper-parameters of a tiny model written with `changes`."""
    tiny_llama(path / "model.gguf", **{"seed": 1, **changes})
    with GGUFReader(path / "model.gguf") as reader:
        return read_hyperparameters(reader)


def zeros(*shape: int) -> NDArray[np.float32]:
    """An f32 tensor of zeros."""
    return np.zeros(shape, np.float32)


def test_every_value_is_the_files(tmp_path: Path) -> None:
    """All values are read from keys and tensors, with no constants (GGUF-5, MODEL-1, BUG-14)."""
    keys = {"llama.rope.freq_base": 500000.0, "llama.attention.layer_norm_rms_epsilon": 2.0**-20}
    assert read(tmp_path, layers=3, num_heads=6, num_kv_heads=3, head_dim=8, keys=keys) == Hyperparameters(
        architecture="llama",
        num_layers=3,
        hidden_size=64,
        ffn_size=172,
        num_heads=6,
        num_kv_heads=3,
        head_dim=8,
        vocab_size=302,
        context_length=256,
        rms_norm_eps=2.0**-20,
        rope_style="adjacent",
        rope_base=500000.0,
        rope_dim=8,
        rope_scaling=RopeScaling(),
        attention_bias=False,
        tied_embeddings=False,
    )


def test_a_qwen2_model_has_biases_and_rotates_halves(tmp_path: Path) -> None:
    """The architecture fixes the rotation style; biases and tied embeddings are seen from the tensors."""
    hyperparameters = read(tmp_path, arch="qwen2", tied=True)
    assert hyperparameters.rope_style == "halves"
    assert hyperparameters.attention_bias
    assert hyperparameters.tied_embeddings


def test_absent_keys_have_the_formats_defaults(tmp_path: Path) -> None:
    """Without optional keys: head_dim = hidden / heads, as many kv heads as heads, base 10000, full rotation."""
    optional = ("attention.key_length", "attention.value_length", "attention.head_count_kv", "rope.freq_base")
    omit = [f"llama.{key}" for key in (*optional, "rope.dimension_count")]
    hyperparameters = read(tmp_path, num_kv_heads=4, omit=omit)
    assert hyperparameters.head_dim == hyperparameters.rope_dim == 16
    assert hyperparameters.num_kv_heads == 4
    assert hyperparameters.rope_base == 10000.0


@pytest.mark.parametrize("tensor_type", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_every_supported_type_is_accepted(tensor_type: str, tmp_path: Path) -> None:
    """Matrices of every type with a device layout pass the check."""
    shape = {"hidden": 256, "ffn": 512, "head_dim": 64}
    assert read(tmp_path, tensor_type=GGMLQuantizationType[tensor_type], **shape).hidden_size == 256


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"type": "none", "factor": 4.0}, RopeScaling()),
        ({"type": "linear", "factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"factor": 2.0}, RopeScaling("linear", 2.0)),
        ({"type": "linear"}, RopeScaling()),
        ({"type": "yarn", "factor": 4.0}, RopeScaling("yarn", 4.0, original_context_length=256)),
        (
            {
                "type": "yarn",
                "factor": 8.0,
                "attn_factor": 0.5,
                "yarn_beta_fast": 16.0,
                "yarn_beta_slow": 2.0,
                "original_context_length": 64,
            },
            RopeScaling("yarn", 8.0, 0.5, 16.0, 2.0, 64),
        ),
    ],
)
def test_rope_scaling_is_the_files(keys: dict[str, Any], scaling: RopeScaling, tmp_path: Path) -> None:
    """Kind and parameters of the scaling are read, with llama.cpp's defaults for absent ones (MODEL-1)."""
    prefixed = {f"llama.rope.scaling.{name}": value for name, value in keys.items()}
    assert read(tmp_path, keys=prefixed).rope_scaling == scaling


def test_the_old_key_of_linear_scaling_is_read(tmp_path: Path) -> None:
    """Files from before the scaling.* keys say rope.scale_linear."""
    assert read(tmp_path, keys={"llama.rope.scale_linear": 4.0}).rope_scaling == RopeScaling("linear", 4.0)


BAD_KEYS: dict[str, tuple[dict[str, Any], str, str]] = {
    "architecture": ({"arch": "gpt2"}, "general.architecture", "must be one of llama, qwen2"),
    "block_count 0": ({"layers": 0}, "llama.block_count", "must be 1 to"),
    "block_count 2^32-1": ({"block_count": 2**32 - 1}, "llama.block_count", "must be 1 to"),
    "block_count 2^31-1": ({"block_count": 2**31 - 1}, "blk.2.attn_norm.weight", "of 2147483647 blocks requires it"),
    "block_count one too many": ({"block_count": 3}, "blk.2.attn_norm.weight", "of 3 blocks requires it"),
    "block_count one too few": ({"block_count": 1}, "llama.block_count", "belongs to a block past the last one"),
    "head_count 0": ({"attention.head_count": 0}, "llama.attention.head_count", "must be 1 to"),
    "head_count not dividing": (
        {"attention.head_count": 3, "omit": ["llama.attention.key_length"]},
        "llama.attention.head_count",
        "must divide embedding_length, 64",
    ),
    "kv heads 0": ({"attention.head_count_kv": 0}, "llama.attention.head_count_kv", "must be 1 to 4"),
    "kv heads not dividing": ({"attention.head_count_kv": 3}, "llama.attention.head_count_kv", "must divide"),
    "more kv heads than heads": ({"attention.head_count_kv": 8}, "llama.attention.head_count_kv", "must be 1 to 4"),
    "kv heads by layer": ({"attention.head_count_kv": [2, 4]}, "llama.attention.head_count_kv", "must be one integer"),
    "embedding_length": ({"embedding_length": 32}, "shape of token_embd.weight", "must be (302, 32)"),
    "embedding_length 0": ({"embedding_length": 0}, "llama.embedding_length", "must be 1 to"),
    "feed_forward_length": ({"feed_forward_length": 100}, "shape of blk.0.ffn_gate.weight", "must be (100, 64)"),
    "context_length 0": ({"context_length": 0}, "llama.context_length", "must be 1 to 16777216"),
    "context_length 2^32-1": ({"context_length": 2**32 - 1}, "llama.context_length", "must be 1 to 16777216"),
    "head_dim odd": ({"head_dim": 15}, "llama.attention.key_length", "must be even"),
    "value_length": ({"attention.value_length": 8}, "llama.attention.value_length", "must equal key_length, 16"),
    "rope dimensions odd": ({"rope.dimension_count": 15}, "llama.rope.dimension_count", "must equal the head's 16"),
    "rope dimensions 0": ({"rope.dimension_count": 0}, "llama.rope.dimension_count", "must equal the head's 16"),
    "rope base NaN": ({"rope.freq_base": float("nan")}, "llama.rope.freq_base", "must be finite"),
    "rope base infinite": ({"rope.freq_base": float("inf")}, "llama.rope.freq_base", "must be finite"),
    "rope base 0": ({"rope.freq_base": 0.0}, "llama.rope.freq_base", "must be finite, 2 to"),
    "epsilon NaN": (
        {"attention.layer_norm_rms_epsilon": float("nan")},
        "llama.attention.layer_norm_rms_epsilon",
        "must be finite",
    ),
    "epsilon 0": ({"attention.layer_norm_rms_epsilon": 0.0}, "llama.attention.layer_norm_rms_epsilon", "1e-20 to 1"),
    "unknown scaling": ({"rope.scaling.type": "longrope"}, "llama.rope.scaling.type", "none, linear or yarn"),
    "scaling factor 0": ({"rope.scaling.factor": 0.0}, "llama.rope.scaling.factor", "must be finite, 1 to"),
    "sliding window": ({"attention.sliding_window": 128}, "llama.attention.sliding_window", "not served yet"),
    "experts": ({"expert_count": 8, "expert_used_count": 2}, "llama.expert_count", "not served yet"),
    "experts used > experts": ({"expert_count": 2, "expert_used_count": 4}, "llama.expert_count", "not served yet"),
    "experts used of none": ({"expert_used_count": 4}, "llama.expert_used_count", "not served yet"),
    "soft-capping": ({"attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping", "not served yet"),
    "bidirectional": ({"attention.causal": False}, "llama.attention.causal", "only causal attention"),
    "split": ({"keys": {"split.count": 2}}, "split.count", "--merge"),
    "no architecture keys": ({"omit": ["llama.context_length"]}, "llama.context_length", "required"),
    "no vocabulary": ({"omit": ["tokenizer.ggml.tokens"]}, "tokenizer.ggml.tokens", "required"),
    "vocabulary of another size": (
        {"keys": {"tokenizer.ggml.tokens": ["a", "b"]}},
        "rows of token_embd.weight",
        "must be 2, one a token",
    ),
}


@pytest.mark.parametrize(("changes", "field", "limit"), BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_bad_hyperparameters_are_refused(changes: dict[str, Any], field: str, limit: str, tmp_path: Path) -> None:
    """Values that are out of range, contradict each other or the tensors, or are not served, are refused (MODEL-5,
    MODEL-7, BUG-7). Lower-case names with a dot or of the format's keys stand for llama.* keys."""
    arguments = {"arch", "layers", "head_dim", "omit", "keys"}
    options = {name: value for name, value in changes.items() if name in arguments}
    keys = {f"llama.{name}": value for name, value in changes.items() if name not in arguments}
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path, **{**options, "keys": {**keys, **options.get("keys", {})}})
    assert caught.value.field == field
    assert limit in caught.value.limit


def test_an_architecture_that_is_absent_or_no_string_is_refused() -> None:
    """general.architecture has to be there, as text."""
    for entries, limit in (([], "required"), ([u32_value("general.architecture", 1)], "must be a string")):
        with pytest.raises(ModelFileError, match=limit) as caught:
            Hyperparameters.from_gguf(GGUFReader.from_bytes(file_bytes(entries), "odd.gguf"))
        assert caught.value.field == "general.architecture"


REQUIRED = [
    "token_embd.weight",
    "output_norm.weight",
    *(
        f"blk.1.{name}.weight"
        for name in (
            "attn_norm",
            "ffn_norm",
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        )
    ),
]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    """A file without a required tensor, norms included, is refused by the tensor's name (BUG-7)."""
    with pytest.raises(ModelFileError, match=f"{re.escape(name)} is absent"):
        read(tmp_path, omit=[name])


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_v.bias"])
def test_some_biases_without_the_others_are_refused(name: str, tmp_path: Path) -> None:
    """Attention biases are there for q, k and v of every block or not at all (MODEL-4)."""
    with pytest.raises(ModelFileError, match=r"attn_[qkv]\.bias is"):
        read(tmp_path, arch="qwen2", omit=[name])


UNEXPECTED = {
    "norm of q, as in qwen3": ("llama", "blk.0.attn_q_norm.weight", (16,)),
    "norm after attention, as in gemma2": ("qwen2", "blk.1.post_attention_norm.weight", (64,)),
    "bias of a norm": ("llama", "output_norm.bias", (64,)),
    "bias of the output": ("llama", "blk.0.attn_output.bias", (64,)),
    "expert": ("llama", "blk.0.ffn_gate_exps.weight", (2, 172, 64)),
    "frequency factors": ("qwen2", "rope_freqs.weight", (8,)),
}


@pytest.mark.parametrize(("arch", "name", "shape"), UNEXPECTED.values(), ids=UNEXPECTED.keys())
def test_a_tensor_that_would_be_ignored_is_refused(
    arch: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """A tensor that the served architecture has no use for is refused by name, not ignored (BUG-7)."""
    with pytest.raises(ModelFileError, match=f"{re.escape(name)} is present; the {arch} models that are served"):
        read(tmp_path, arch=arch, tensors={name: zeros(*shape)})


BAD_SHAPES = {
    "transposed": ("blk.0.ffn_up.weight", zeros(64, 172), "shape of blk.0.ffn_up.weight", r"must be \(172, 64\)"),
    "kv heads": ("blk.1.attn_k.weight", zeros(64, 64), "shape of blk.1.attn_k.weight", r"must be \(32, 64\)"),
    "norm": ("blk.1.ffn_norm.weight", zeros(63), "shape of blk.1.ffn_norm.weight", r"must be \(64,\)"),
    "norm of two dimensions": ("output_norm.weight", zeros(1, 64), "shape of output_norm.weight", r"must be \(64,\)"),
    "frequency factors": ("rope_freqs.weight", zeros(16), "shape of rope_freqs.weight", r"must be \(8,\)"),
    "integers": (
        "blk.0.ffn_up.weight",
        np.zeros((172, 64), np.int32),
        "type of blk.0.ffn_up.weight",
        "must be one of BF16, F16, F32",
    ),
    "norm of integers": ("output_norm.weight", np.zeros(64, np.int8), "type of output_norm.weight", "must be one of"),
}


@pytest.mark.parametrize(("name", "array", "field", "limit"), BAD_SHAPES.values(), ids=BAD_SHAPES.keys())
def test_a_tensor_of_wrong_shape_or_type_is_refused(
    name: str, array: NDArray[Any], field: str, limit: str, tmp_path: Path
) -> None:
    """Every tensor has the shape that the hyper-parameters give and a type that can be used (MODEL-13)."""
    with pytest.raises(ModelFileError, match=limit) as caught:
        read(tmp_path, tensors={name: array})
    assert caught.value.field == field


def test_frequency_factors_are_accepted_in_a_llama_model(tmp_path: Path) -> None:
    """Llama 3 files bring rope_freqs.weight."""
    assert read(tmp_path, tensors={"rope_freqs.weight": np.ones(8, np.float32)}).rope_dim == 16


def test_they_cannot_be_changed(tmp_path: Path) -> None:
    """Hyper-parameters are a frozen value."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(tmp_path).num_layers = 1  # type: ignore[misc]  # the point of the test


def test_a_real_model_is_read(shared_data: Path) -> None:
    """The real model's values are those its makers wrote."""
    with GGUFReader(shared_data / "models" / "stories260K.gguf") as reader:
        h = read_hyperparameters(reader)
    assert (h.num_layers, h.hidden_size, h.ffn_size, h.num_heads, h.num_kv_heads) == (5, 64, 172, 8, 4)
    assert (h.head_dim, h.vocab_size, h.context_length) == (8, 512, 512)
    assert h.rms_norm_eps == np.float32(1e-5)
