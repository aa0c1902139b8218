"""The model in JAX: the llama architecture as CLForge and llama.cpp run it, with grouped-query attention and tied embeddings."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .batches import Batch

Layer = dict[str, jax.Array]


class Shape(NamedTuple):
    """Sizes of a model. Every row of every matrix is a multiple of 256 long, so that each K-quant can hold it."""

    vocab_size: int = 1024
    num_layers: int = 4
    hidden_size: int = 256
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    ffn_size: int = 768
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5


class Params(NamedTuple):
    """Weights, float32. Matrices are (outputs, inputs), as in the file; layers name them as the file does, without ``.weight``."""

    token_embd: jax.Array
    layers: list[Layer]
    output_norm: jax.Array


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each matrix of a layer."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }


def initial(shape: Shape, seed: int) -> Params:
    """Normal weights of variance 1 / inputs; those that write into the residual stream smaller by the square root of their number."""
    keys = iter(jax.random.split(jax.random.key(seed), 1 + 7 * shape.num_layers))
    residual = (2 * shape.num_layers) ** -0.5

    def layer() -> Layer:
        weights = {
            name: jax.random.normal(next(keys), size) * size[1] ** -0.5 * (residual if name in _RESIDUAL else 1.0)
            for name, size in matrices(shape).items()
        }
        return weights | {norm: jnp.ones(shape.hidden_size) for norm in ("attn_norm", "ffn_norm")}

    embedding = jax.random.normal(next(keys), (shape.vocab_size, shape.hidden_size)) * 0.02
    return Params(embedding, [layer() for _ in range(shape.num_layers)], jnp.ones(shape.hidden_size))


_RESIDUAL = ("attn_output", "ffn_down")


def loss(params: Params, batch: Batch, shape: Shape) -> jax.Array:
    """Mean cross-entropy, in nats, of the targets that count."""
    logits = forward(params, batch, shape)
    entropies = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    return jnp.sum(entropies * batch.weights) / jnp.maximum(jnp.sum(batch.weights), 1.0)


def forward(params: Params, batch: Batch, shape: Shape) -> jax.Array:
    """Logits (rows, row_len, vocab_size) of the next token at each place."""
    row_len = batch.token_ids.shape[1]
    same = batch.documents[:, :, None] == batch.documents[:, None, :]
    mask = (same & jnp.tril(jnp.ones((row_len, row_len), bool)))[:, None, None]
    rotation = _rotation(batch.positions, shape)
    hidden = params.token_embd[batch.token_ids]
    for layer in params.layers:
        hidden = hidden + _attention(layer, _rms_norm(hidden, layer["attn_norm"], shape), rotation, mask, shape)
        hidden = hidden + _feed_forward(layer, _rms_norm(hidden, layer["ffn_norm"], shape))
    return _rms_norm(hidden, params.output_norm, shape) @ params.token_embd.T


def _attention(layer: Layer, hidden: jax.Array, rotation: jax.Array, mask: jax.Array, shape: Shape) -> jax.Array:
    """Causal attention; ``num_heads`` / ``num_kv_heads`` query heads share a key head, in order."""
    rows, row_len, _ = hidden.shape
    group = shape.num_heads // shape.num_kv_heads
    queries = (hidden @ layer["attn_q"].T).reshape(rows, row_len, shape.num_kv_heads, group, shape.head_dim)
    keys = (hidden @ layer["attn_k"].T).reshape(rows, row_len, shape.num_kv_heads, 1, shape.head_dim)
    values = (hidden @ layer["attn_v"].T).reshape(rows, row_len, shape.num_kv_heads, shape.head_dim)
    queries, keys = _rotate(queries, rotation), _rotate(keys, rotation)[:, :, :, 0]
    scores = jnp.einsum("btkgd,bskd->bkgts", queries, keys) * shape.head_dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, values)
    return mixed.reshape(rows, row_len, -1) @ layer["attn_output"].T


def _feed_forward(layer: Layer, hidden: jax.Array) -> jax.Array:
    """SwiGLU (Shazeer, "GLU variants improve transformer", 2020)."""
    return (jax.nn.silu(hidden @ layer["ffn_gate"].T) * (hidden @ layer["ffn_up"].T)) @ layer["ffn_down"].T


def _rms_norm(hidden: jax.Array, weight: jax.Array, shape: Shape) -> jax.Array:
    mean_square = jnp.mean(hidden * hidden, axis=-1, keepdims=True)
    return hidden * jax.lax.rsqrt(mean_square + shape.norm_epsilon) * weight


def _rotation(positions: jax.Array, shape: Shape) -> jax.Array:
    """e^(i angle) per place and pair, (rows, row_len, 1, 1, head_dim / 2) complex64."""
    frequencies = shape.rope_base ** (-jnp.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = positions[:, :, None] * frequencies
    return jax.lax.complex(jnp.cos(angles), jnp.sin(angles))[:, :, None, None]


def _rotate(heads: jax.Array, rotation: jax.Array) -> jax.Array:
    """Rotary embedding of neighbouring pairs, the order of a GGUF's llama architecture (Su et al., "RoFormer", 2021)."""
    pairs = jax.lax.complex(heads[..., 0::2], heads[..., 1::2]) * rotation
    return jnp.stack((pairs.real, pairs.imag), axis=-1).reshape(heads.shape)
