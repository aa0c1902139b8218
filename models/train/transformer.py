"""The model in JAX: the llama architecture, with grouped-query attention and tied embeddings."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.train.batches import Batch

Layer = dict[str, jax.Array]
Rotation = tuple[jax.Array, jax.Array]


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
    """Weights, float32; matrices are (outputs, inputs). Layers name theirs as the file does, without ``.weight``."""

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
    """Normal weights of variance 1 / inputs; those that write to the residual stream less by their number's root."""
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
    entropies = (
        jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    )
    return jnp.sum(entropies * batch.weights) / jnp.maximum(jnp.sum(batch.weights), 1.0)


def forward(params: Params, batch: Batch, shape: Shape) -> jax.Array:
    """Logits (rows, row_len, vocab_size) of the next token at each place."""
    row_len = batch.token_ids.shape[1]
    same = batch.documents[:, :, None] == batch.documents[:, None, :]
    seen = same & jnp.tril(jnp.ones((row_len, row_len), bool))
    mask = jnp.where(seen, 0.0, -1e30)[:, None]
    rotation = _rotation(batch.positions, shape)
    hidden = params.token_embd[batch.token_ids]
    for layer in params.layers:
        hidden = hidden + _attention(layer, _rms_norm(hidden, layer["attn_norm"], shape), rotation, mask, shape)
        hidden = hidden + _feed_forward(layer, _rms_norm(hidden, layer["ffn_norm"], shape))
    return _rms_norm(hidden, params.output_norm, shape) @ params.token_embd.T


def _attention(layer: Layer, hidden: jax.Array, rotation: Rotation, mask: jax.Array, shape: Shape) -> jax.Array:
    """Causal attention; ``num_heads`` / ``num_kv_heads`` query heads share a key head, in order.

    Both products are plain batched ones, of (rows x key heads, queries, head_dim) and (rows x key heads, row_len,
    head_dim): a CPU does them twice as fast as products over five axes.
    """
    rows, row_len, _ = hidden.shape
    group = shape.num_heads // shape.num_kv_heads

    def heads(name: str, count: int) -> jax.Array:
        return (hidden @ layer[name].T).reshape(rows, row_len, count, shape.head_dim).swapaxes(1, 2)

    batch = rows * shape.num_kv_heads
    queries = _rotate(heads("attn_q", shape.num_heads), rotation).reshape(batch, group * row_len, shape.head_dim)
    keys = _rotate(heads("attn_k", shape.num_kv_heads), rotation).reshape(batch, row_len, shape.head_dim)
    values = heads("attn_v", shape.num_kv_heads).reshape(batch, row_len, shape.head_dim)
    scores = jnp.einsum("bqd,bkd->bqk", queries * shape.head_dim**-0.5, keys)
    scores = scores.reshape(rows, shape.num_heads, row_len, row_len) + mask
    weights = jax.nn.softmax(scores, axis=-1).reshape(batch, group * row_len, row_len)
    mixed = jnp.einsum("bqk,bkd->bqd", weights, values).reshape(rows, shape.num_heads, row_len, shape.head_dim)
    return mixed.swapaxes(1, 2).reshape(rows, row_len, -1) @ layer["attn_output"].T


def _feed_forward(layer: Layer, hidden: jax.Array) -> jax.Array:
    """SwiGLU (Shazeer, "GLU variants improve transformer", 2020)."""
    return (jax.nn.silu(hidden @ layer["ffn_gate"].T) * (hidden @ layer["ffn_up"].T)) @ layer["ffn_down"].T


def _rms_norm(hidden: jax.Array, weight: jax.Array, shape: Shape) -> jax.Array:
    mean_square = jnp.mean(hidden * hidden, axis=-1, keepdims=True)
    return hidden * jax.lax.rsqrt(mean_square + shape.norm_epsilon) * weight


def _rotation(positions: jax.Array, shape: Shape) -> Rotation:
    """Cosine and sine per place and pair, each (rows, 1, row_len, head_dim / 2)."""
    frequencies = shape.rope_base ** (-jnp.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = (positions[:, :, None] * frequencies)[:, None]
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(heads: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotary embedding of neighbouring pairs, the order of a GGUF's llama architecture (Su et al., RoFormer, 2021)."""
    cos, sin = rotation
    even, odd = heads[..., 0::2], heads[..., 1::2]
    return jnp.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(heads.shape)
