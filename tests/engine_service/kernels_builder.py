"""Builder of ModelKernels without a model: any layouts in any roles, any shape of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine_service.compute.model_kernels import ModelKernels
from engine_service.compute.quant_layouts import SUPPORTED_TYPES, Layout, layout_for
from engine_service.models.families import RopeStyle
from engine_service.models.hyperparameters import Hyperparameters, RopeScaling

ALL_LAYOUTS = tuple(layout_for(tensor_type) for tensor_type in sorted(SUPPORTED_TYPES))
MATMUL_ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


def layout_named(name: str) -> Layout:
    """The layout of GGUF's type `name`."""
    return next(layout for layout in ALL_LAYOUTS if layout.name == name)


def in_all_roles(*layouts: Layout) -> dict[str, tuple[Layout, ...]]:
    """Every role has all of `layouts`."""
    return dict.fromkeys(("token_embd", *MATMUL_ROLES), layouts)


def dealt_out(layouts: Sequence[Layout]) -> dict[str, tuple[Layout, ...]]:
    """The embedding has all of `layouts`; of the other roles each has its share."""
    shares = {role: tuple(layouts[index :: len(MATMUL_ROLES)]) for index, role in enumerate(MATMUL_ROLES)}
    return {"token_embd": tuple(layouts), **shares}


def model_kernels(
    layouts: Mapping[str, tuple[Layout, ...]],
    *,
    num_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 12,
    rope_style: RopeStyle = "adjacent",
    attention_bias: bool = True,
    block_size: int = 8,
    kv_cache_type: str = "f16",
) -> ModelKernels:
    """The kernels of a model whose other sizes do not matter to them."""
    hyperparameters = Hyperparameters(
        architecture="llama",
        num_layers=1,
        hidden_size=64,
        ffn_size=64,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=64,
        context_length=64,
        rms_norm_eps=1e-5,
        rope_style=rope_style,
        rope_base=10000.0,
        rope_dim=head_dim,
        rope_scaling=RopeScaling(),
        attention_bias=attention_bias,
        tied_embeddings=False,
    )
    return ModelKernels(hyperparameters, layouts, block_size, kv_cache_type, eog_ids=(1, 2))
