"""Layouts in the roles of a model's matrices, for `small_model_kernels`."""

from __future__ import annotations

from collections.abc import Sequence

from engine_service.compute.quant_layouts import SUPPORTED_TYPES, Layout, layout_for

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
