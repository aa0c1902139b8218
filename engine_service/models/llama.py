"""The llama family: pre-norm decoder, grouped-query attention with rotary positions, SwiGLU.

Architectures `llama` and `qwen2` (which adds biases to q, k and v, and rotates halves instead of neighbours); both
follow from the hyper-parameters. Source: llama.cpp's src/models/llama.cpp and qwen2.cpp.
"""

from __future__ import annotations

from typing import NamedTuple

import pyopencl as cl

from engine_service.compute.device import Device
from engine_service.compute.kv_cache import KVCache
from engine_service.compute.launches import Launch
from engine_service.compute.operations import Activations, AttentionShape, Operations
from engine_service.compute.step_inputs import StepLimits
from engine_service.compute.weights import Matrix, Weights
from engine_service.models.hyperparameters import Hyperparameters
from engine_service.models.rotary import rope_freq_factors, rotary_table
from service_common.gguf_reader import GGUFReader


class _Layer(NamedTuple):
    attn_norm: cl.Buffer
    q: Matrix
    k: Matrix
    v: Matrix
    q_bias: cl.Buffer | None
    k_bias: cl.Buffer | None
    v_bias: cl.Buffer | None
    attn_output: Matrix
    ffn_norm: cl.Buffer
    gate: Matrix
    up: Matrix
    down: Matrix


class LlamaModel:
    """A model on the device: `launches`, in order, turn StepInputs into `logits` f32 [rows wanted][vocab_size]."""

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        reader: GGUFReader,
        weights: Weights,
        operations: Operations,
        cache: KVCache,
        device: Device,
        limits: StepLimits,
    ) -> None:
        h = self._h = hyperparameters
        self._operations, self._cache, self._limits = operations, cache, limits
        self._shape = AttentionShape(h.num_heads, h.num_kv_heads, h.head_dim, h.rope_dim, h.rope_style == "adjacent")
        num_positions = limits.max_blocks_per_seq * limits.block_size
        table = rotary_table(h, num_positions, rope_freq_factors(reader, h))
        self._rotary_table = device.upload(table, "rotary_table")
        embedding = weights.matrix("token_embd.weight")
        head = embedding if h.tied_embeddings else weights.matrix("output.weight")
        self._hidden = operations.rows(limits.max_tokens, h.hidden_size, "hidden")
        self._qkv = operations.rows(limits.max_tokens, self._shape.qkv_width, "qkv")
        self._gate_up = operations.rows(limits.max_tokens, 2 * h.ffn_size, "gate_up")
        self.logits = operations.rows(limits.max_logit_rows, h.vocab_size, "logits")
        self.launches = operations.gather(embedding, self._hidden)
        self._inputs: dict[tuple[str, bool, bool], Activations] = {}
        for index in range(h.num_layers):
            self.launches += self._layer(index, _load_layer(weights, index))
        self.launches += self._head(weights.vector("output_norm.weight"), head)

    def _layer(self, index: int, layer: _Layer) -> list[Launch]:
        return self._attention(index, layer) + self._feed_forward(layer)

    def _attention(self, index: int, layer: _Layer) -> list[Launch]:
        op, h, shape = self._operations, self._h, self._shape
        normed = self._input("attn_input", h.hidden_size, layer.q, layer.k, layer.v)
        launches = op.rms_norm(self._hidden, layer.attn_norm, h.rms_norm_eps, normed)
        offset = 0
        for matrix, bias in ((layer.q, layer.q_bias), (layer.k, layer.k_bias), (layer.v, layer.v_bias)):
            launches += op.matmul(
                matrix, normed, self._qkv, y_stride=shape.qkv_width, y_offset=offset, bias=bias, is_beside=offset > 0
            )
            offset += matrix.rows
        launches += op.rope_kv_write(self._qkv, self._rotary_table, self._cache, index, shape)
        attended = self._input("attn_output_input", h.num_heads * h.head_dim, layer.attn_output, with_values=True)
        assert attended.values is not None
        launches += op.attention(self._qkv, self._cache, index, attended.values, shape)
        launches += op.quantize(attended)
        return launches + op.matmul(layer.attn_output, attended, self._hidden, y_stride=h.hidden_size, add_to_y=True)

    def _feed_forward(self, layer: _Layer) -> list[Launch]:
        op, h = self._operations, self._h
        normed = self._input("ffn_input", h.hidden_size, layer.gate, layer.up)
        launches = op.rms_norm(self._hidden, layer.ffn_norm, h.rms_norm_eps, normed)
        launches += op.matmul(layer.gate, normed, self._gate_up, y_stride=2 * h.ffn_size)
        launches += op.matmul(
            layer.up, normed, self._gate_up, y_stride=2 * h.ffn_size, y_offset=h.ffn_size, is_beside=True
        )
        gated = self._input("down_input", h.ffn_size, layer.down)
        launches += op.swiglu(self._gate_up, gated)
        return launches + op.matmul(layer.down, gated, self._hidden, y_stride=h.hidden_size, add_to_y=True)

    def _head(self, norm: cl.Buffer, head: Matrix) -> list[Launch]:
        op, h = self._operations, self._h
        normed = op.activations(self._limits.max_logit_rows, h.hidden_size, [head], "head_input")
        launches = op.rms_norm(self._hidden, norm, h.rms_norm_eps, normed, only_logit_rows=True)
        return launches + op.matmul(head, normed, self.logits, y_stride=h.vocab_size, only_logit_rows=True)

    def _input(self, name: str, width: int, *consumers: Matrix, with_values: bool = False) -> Activations:
        """Activations for `consumers`; layers whose matrices take the same forms share them."""
        forms = {matrix.layout.is_quantised for matrix in consumers}
        key = name, True in forms, with_values or False in forms
        if key not in self._inputs:
            self._inputs[key] = self._operations.activations(
                self._limits.max_tokens, width, consumers, name, with_values=with_values
            )
        return self._inputs[key]


def _load_layer(weights: Weights, index: int) -> _Layer:
    prefix = f"blk.{index}."
    return _Layer(
        attn_norm=weights.vector(f"{prefix}attn_norm.weight"),
        q=weights.matrix(f"{prefix}attn_q.weight"),
        k=weights.matrix(f"{prefix}attn_k.weight"),
        v=weights.matrix(f"{prefix}attn_v.weight"),
        q_bias=weights.optional_vector(f"{prefix}attn_q.bias"),
        k_bias=weights.optional_vector(f"{prefix}attn_k.bias"),
        v_bias=weights.optional_vector(f"{prefix}attn_v.bias"),
        attn_output=weights.matrix(f"{prefix}attn_output.weight"),
        ffn_norm=weights.vector(f"{prefix}ffn_norm.weight"),
        gate=weights.matrix(f"{prefix}ffn_gate.weight"),
        up=weights.matrix(f"{prefix}ffn_up.weight"),
        down=weights.matrix(f"{prefix}ffn_down.weight"),
    )
