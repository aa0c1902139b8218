"""A llama-family forward pass in float64 from exactly dequantised weights: the E that parity is measured from.

Written from the papers and llama.cpp's graph, sharing no arithmetic with the engine: no cache, no blocks, one sequence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class ReferenceModel:
    """Reads a whole GGUF into memory; small models only."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._fields = reader.fields
        self.architecture = str(reader.fields["general.architecture"].contents())
        self._weights = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float64) for tensor in reader.tensors
        }

    def logits(self, token_ids: list[int]) -> Floats:
        """Logits (len(token_ids), vocab_size) after each token."""
        x = self._weights["token_embd.weight"][token_ids]
        for layer in range(int(self._value("block_count"))):
            x = x + self._attention(layer, x)
            x = x + self._feed_forward(layer, x)
        head = self._weights.get("output.weight", self._weights["token_embd.weight"])
        return self._norm(x, "output_norm") @ head.T

    def _attention(self, layer: int, x: Floats) -> Floats:
        num_heads, num_kv_heads = int(self._value("attention.head_count")), int(self._value("attention.head_count_kv"))
        num_tokens = len(x)
        normed = self._norm(x, f"blk.{layer}.attn_norm")
        q, k, v = (self._linear(normed, f"blk.{layer}.attn_{part}") for part in "qkv")
        q = self._rotate(q.reshape(num_tokens, num_heads, -1))
        k = self._rotate(k.reshape(num_tokens, num_kv_heads, -1))
        v = v.reshape(num_tokens, num_kv_heads, -1)
        group = num_heads // num_kv_heads
        scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, group, axis=1)) / np.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((num_tokens, num_tokens), bool)), scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", p, np.repeat(v, group, axis=1))
        return self._linear(attended.reshape(num_tokens, -1), f"blk.{layer}.attn_output")

    def _feed_forward(self, layer: int, x: Floats) -> Floats:
        normed = self._norm(x, f"blk.{layer}.ffn_norm")
        gate, up = self._linear(normed, f"blk.{layer}.ffn_gate"), self._linear(normed, f"blk.{layer}.ffn_up")
        return self._linear(gate / (1 + np.exp(-gate)) * up, f"blk.{layer}.ffn_down")

    def _rotate(self, heads: Floats) -> Floats:
        """Neighbours for llama, halves for qwen2; the position is the row."""
        dim = heads.shape[-1]
        frequencies = float(self._value("rope.freq_base", 10000.0)) ** (-np.arange(0, dim, 2) / dim)
        angles = np.arange(len(heads))[:, None, None] * frequencies
        first, second = (slice(0, None, 2), slice(1, None, 2))
        if self.architecture == "qwen2":
            first, second = (slice(0, dim // 2), slice(dim // 2, None))
        a, b, rotated = heads[..., first], heads[..., second], np.empty_like(heads)
        rotated[..., first] = a * np.cos(angles) - b * np.sin(angles)
        rotated[..., second] = a * np.sin(angles) + b * np.cos(angles)
        return rotated

    def _norm(self, x: Floats, name: str) -> Floats:
        eps = float(self._value("attention.layer_norm_rms_epsilon"))
        normed: Floats = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * self._weights[f"{name}.weight"]
        return normed

    def _linear(self, x: Floats, name: str) -> Floats:
        return x @ self._weights[f"{name}.weight"].T + self._weights.get(f"{name}.bias", 0.0)

    def _value(self, key: str, default: object = None) -> float:
        field = self._fields.get(f"{self.architecture}.{key}")
        value = default if field is None else field.contents()
        assert isinstance(value, int | float), key
        return value
