"""The models of the check: the bundled one, and a small one for each device layout."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType

from tests.gguf_builder import tiny_llama

BUNDLED = Path(__file__).parents[2] / "models" / "clforge-tiny.gguf"
LAYOUTS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


def make_model(layout: str, folder: Path) -> Path:
    """Random weights, all matrices in one layout; llama and qwen2 take turns. The same file every time."""
    arch = ("llama", "qwen2")[LAYOUTS.index(layout) % 2]
    path = folder / f"{layout}-{arch}.gguf"
    tiny_llama(
        path,
        seed=4,
        arch=arch,
        tensor_type=GGMLQuantizationType[layout],
        hidden=256,
        ffn=512,
        head_dim=64,
        context_length=512,
    )
    return path
