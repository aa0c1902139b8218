"""The tokenizer service by itself: how fast it encodes, and what a delta costs on its way through."""

from __future__ import annotations

from pathlib import Path

from benchmarks import deltas, encoding
from benchmarks.llama_cpp import peer_python
from benchmarks.models import find_shared_data

VOCABULARIES = ("llama-bpe", "qwen2", "llama-spm")


def measure(model: Path, seed: int) -> dict[str, float]:
    """Deltas with the vocabulary of `model`; encoding with those of the outside test data, beside llama.cpp."""
    return {**_encoding_figures(), **deltas.measure(model)}


def _encoding_figures() -> dict[str, float]:
    folder, python = find_shared_data() / "vocab", peer_python()
    figures: dict[str, float] = {}
    for name in VOCABULARIES:
        path = folder / f"ggml-vocab-{name}.gguf"
        rates = encoding.measure(path, encoding.sample_texts(path.with_suffix(".gguf.inp")), python)
        figures |= {f"encode_{side}_mb_per_s_{name}": rate for side, rate in rates.items()}
    return figures
