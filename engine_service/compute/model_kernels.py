"""Which kernels a model runs, and what each is built for: as models.llama has it, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from engine_service.compute.operations import AttentionShape
from engine_service.compute.quant_layouts import Layout, layout_for
from engine_service.models.families import RopeStyle
from engine_service.models.hyperparameters import Hyperparameters, RopeScaling
from service_common.gguf_reader import GGUFReader

_BIASED = ("attn_q", "attn_k", "attn_v")  # roles whose products get the model's biases, if it has any
_RESIDUAL = ("attn_output", "ffn_down")  # roles whose products are added to the hidden state


class MatmulKind(NamedTuple):
    """What a matmul kernel is built for."""

    layout: Layout
    has_bias: bool
    adds_to_y: bool

    @property
    def name(self) -> str:
        """The kernel, and its layout."""
        return f"{'matmul_quant' if self.layout.is_quantised else 'matmul_float'} {self.layout.name}"


@dataclass(frozen=True)
class ModelKernels:
    """What decides which kernels a model of models.llama runs, and what they are built for.

    `layouts` are the distinct ones of its matrices by role: token_embd, attn_q, attn_k, attn_v, attn_output, ffn_gate,
    ffn_up, ffn_down, and output, which has token_embd's where the two are tied.
    """

    hyperparameters: Hyperparameters
    layouts: Mapping[str, tuple[Layout, ...]]
    block_size: int
    kv_cache_type: str
    eog_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        reader: GGUFReader,
        hyperparameters: Hyperparameters,
        *,
        block_size: int,
        kv_cache_type: str,
        eog_ids: tuple[int, ...],
    ) -> Self:
        """As the file has it; StartupError where no layout holds one of its matrices."""
        by_role: dict[str, set[Layout]] = {}
        for name, tensor in reader.tensors.items():
            if len(tensor.shape) == 2:
                by_role.setdefault(name.split(".")[-2], set()).add(layout_for(tensor.type))
        by_role.setdefault("output", by_role["token_embd"])
        layouts = {role: tuple(sorted(found, key=lambda layout: layout.name)) for role, found in by_role.items()}
        return cls(hyperparameters, layouts, block_size, kv_cache_type, eog_ids)

    @property
    def shape(self) -> AttentionShape:
        """The shape of its attention."""
        h = self.hyperparameters
        return AttentionShape(h.num_heads, h.num_kv_heads, h.head_dim, h.rope_dim, h.rope_style == "adjacent")

    def forms(self, *roles: str) -> list[Layout]:
        """One layout for each form, f32 or quantised, in which matrices of `roles` take their input."""
        return list({layout.is_quantised: layout for role in roles for layout in self.layouts[role]}.values())

    def matmuls(self) -> list[MatmulKind]:
        """All kinds of matmul, in a fixed order."""
        has_bias = self.hyperparameters.attention_bias
        kinds = {
            MatmulKind(layout, has_bias and role in _BIASED, role in _RESIDUAL)
            for role, layouts in self.layouts.items()
            if role != "token_embd"
            for layout in layouts
        }
        return sorted(kinds, key=lambda kind: (kind.name, kind.has_bias, kind.adds_to_y))


def small_model_kernels(
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
    """The kernels of a small llama with `layouts` by role, as in ModelKernels; its other sizes do not matter."""
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
