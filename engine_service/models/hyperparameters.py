"""A model's hyper-parameters, read from its GGUF file and checked against its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from engine_service.models.families import FAMILIES, RopeStyle
from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader

MAX_CONTEXT_LENGTH = 1 << 24
_MAX_DIMENSION = 2**31 - 1  # kernels index rows and columns by int32

# Keys that change the arithmetic in a way no served model needs, each with the value that changes nothing. A file
# that says otherwise is refused, since ignoring the key would give wrong text.
_UNSERVED_KEYS = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.sliding_window": 0,
    "attention.max_alibi_bias": 0,
    "attention.clamp_kqv": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "rope.scaling.alpha": 0,
    "rope.scaling.yarn_log_multiplier": 0,
    "rope.scaling.yarn_ext_factor": 1,
    "rope.scaling.yarn_attn_factor": 1,
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context; the formulas are in `rotary`.

    `factor` ≥ 1 is the stretch of 'linear' and 'yarn'; the other fields belong to 'yarn' alone.
    """

    kind: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context_length: int = 0


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What the forward pass needs to know of a model; every value is checked by `from_gguf`.

    num_heads is a multiple of num_kv_heads. rope_dim equals head_dim, which is even. `attention_bias`: q, k and v
    projections of every layer add a bias. `tied_embeddings`: the embedding matrix serves as the output projection.
    context_length is the trained one; the served one may be shorter.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope_style: RopeStyle
    rope_base: float
    rope_dim: int
    rope_scaling: RopeScaling
    attention_bias: bool
    tied_embeddings: bool

    @classmethod
    def from_gguf(cls, reader: GGUFReader) -> Self:
        """Read and check the keys; `tensor_table.read_hyperparameters` holds them against the tensors as well.

        Raises ModelFileError for a model that cannot be served, and says why.
        """
        architecture = reader.get_str("general.architecture")
        if architecture not in FAMILIES:
            reader.refuse("general.architecture", f"must be one of {', '.join(FAMILIES)}")
        _refuse_unserved(reader, architecture)

        def size(key: str, default: int | None = None) -> int:
            return reader.get_int(f"{architecture}.{key}", default, minimum=1, maximum=_MAX_DIMENSION)

        context_length = reader.get_int(f"{architecture}.context_length", minimum=1, maximum=MAX_CONTEXT_LENGTH)
        num_heads = size("attention.head_count")
        hidden_size = size("embedding_length")
        head_dim = _head_dim(reader, architecture, hidden_size, num_heads)
        return cls(
            architecture=architecture,
            num_layers=size("block_count"),
            hidden_size=hidden_size,
            ffn_size=size("feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=_num_kv_heads(reader, architecture, num_heads),
            head_dim=head_dim,
            vocab_size=_vocab_size(reader),
            context_length=context_length,
            rms_norm_eps=reader.get_float(f"{architecture}.attention.layer_norm_rms_epsilon", minimum=1e-20, maximum=1),
            rope_style=FAMILIES[architecture].rope_style,
            rope_base=reader.get_float(f"{architecture}.rope.freq_base", 10000.0, minimum=2),
            rope_dim=_rope_dim(reader, architecture, head_dim),
            rope_scaling=_rope_scaling(reader, architecture, context_length),
            attention_bias="blk.0.attn_q.bias" in reader.tensors,
            tied_embeddings="output.weight" not in reader.tensors,
        )


def _refuse_unserved(reader: GGUFReader, architecture: str) -> None:
    if reader.get_int("split.count", 1) > 1:
        reader.refuse("split.count", "the model is in several files; join them with llama.cpp's gguf-split --merge")
    if not reader.get_bool(f"{architecture}.attention.causal", True):
        reader.refuse(f"{architecture}.attention.causal", "only causal attention is served")
    for name, neutral in _UNSERVED_KEYS.items():
        key = f"{architecture}.{name}"
        if reader.get_float(key, neutral) != neutral:
            reader.refuse(key, f"must be absent or {neutral}; models with this feature are not served yet")


def _head_dim(reader: GGUFReader, architecture: str, hidden_size: int, num_heads: int) -> int:
    key, value_key = f"{architecture}.attention.key_length", f"{architecture}.attention.value_length"
    if key not in reader and hidden_size % num_heads:
        reader.refuse(f"{architecture}.attention.head_count", f"must divide embedding_length, {hidden_size}")
    head_dim = reader.get_int(key, hidden_size // num_heads, minimum=1, maximum=_MAX_DIMENSION)
    if head_dim % 2:
        raise ModelFileError(reader.name, key, head_dim, "must be even, since rotary encoding turns pairs")
    value_length = reader.get_int(value_key, hidden_size // num_heads)
    if value_length != head_dim:
        raise ModelFileError(reader.name, value_key, value_length, f"must equal key_length, {head_dim}")
    return head_dim


def _num_kv_heads(reader: GGUFReader, architecture: str, num_heads: int) -> int:
    key = f"{architecture}.attention.head_count_kv"
    num_kv_heads = reader.get_int(key, num_heads, minimum=1, maximum=num_heads)
    if num_heads % num_kv_heads:
        reader.refuse(key, f"must divide head_count, {num_heads}")
    return num_kv_heads


def _rope_dim(reader: GGUFReader, architecture: str, head_dim: int) -> int:
    key = f"{architecture}.rope.dimension_count"
    rope_dim = reader.get_int(key, head_dim)
    if rope_dim != head_dim:
        reader.refuse(key, f"must equal the head's {head_dim} dimensions in architecture {architecture}")
    return rope_dim


def _vocab_size(reader: GGUFReader) -> int:
    tokens = len(reader.get_array("tokenizer.ggml.tokens", str))
    embedding = reader.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError(reader.name, "token_embd.weight", "absent", "the tensor is required")
    if embedding.rows != tokens:
        raise ModelFileError(reader.name, "rows of token_embd.weight", embedding.rows, f"must be {tokens}, one a token")
    return tokens


def _rope_scaling(reader: GGUFReader, architecture: str, context_length: int) -> RopeScaling:
    prefix = f"{architecture}.rope.scaling"
    kind = reader.get_str(f"{prefix}.type", "linear")
    old_factor = reader.get_float(f"{architecture}.rope.scale_linear", 1.0, minimum=1)
    factor = reader.get_float(f"{prefix}.factor", old_factor, minimum=1)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        reader.refuse(f"{prefix}.type", "must be none, linear or yarn")
    default = RopeScaling()
    return RopeScaling(
        kind="yarn",
        factor=factor,
        attn_factor=reader.get_float(f"{prefix}.attn_factor", default.attn_factor, minimum=1e-3, maximum=1e3),
        beta_fast=reader.get_float(f"{prefix}.yarn_beta_fast", default.beta_fast, minimum=1e-3),
        beta_slow=reader.get_float(f"{prefix}.yarn_beta_slow", default.beta_slow, minimum=1e-3),
        original_context_length=reader.get_int(
            f"{prefix}.original_context_length", context_length, minimum=1, maximum=MAX_CONTEXT_LENGTH
        ),
    )
