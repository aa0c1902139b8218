"""What kernels should compute, in numpy: docs/numerics.md in float64, and in integers where it has them.

The order of sums is free here, so results are near the kernels' and not their bits; ids are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from engine_service.scheduling.sampling_params import SamplingParams

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

KV_ITEM_TYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4"), "int8": np.dtype("i1")}

_GROUP = 32
_WORD = 0xFFFFFFFF

# The f16 fields of a quantised block, in bytes from its start, where there is more to it than a scale at 0.
_F16_FIELDS = {
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
}


class Quantised(NamedTuple):
    """Rows as section 2 has them: codes (M, K), scales (M, K / 32), sums (M, K / 32, 2), K a multiple of 32."""

    codes: NDArray[np.int8]
    scales: Floats
    sums: NDArray[np.int16]


def difference(actual: ArrayLike, expected: ArrayLike) -> float:
    """‖actual − expected‖ ÷ ‖expected‖, Euclidean; NaN where `actual` is."""
    exact = np.asarray(expected, np.float64).ravel()
    distance = np.asarray(actual, np.float64).ravel() - exact
    return float(np.sqrt(distance @ distance) / np.sqrt(exact @ exact))


def random_weights(rng: np.random.Generator, tensor_type: GgmlType, rows: int, cols: int) -> NDArray[np.uint8]:
    """A file's bytes (rows, row_bytes) of a matrix; in quantised types codes and small scales are of all values."""
    block_elements, block_bytes = GGML_QUANT_SIZES[tensor_type]
    if block_elements == 1:
        weights = rng.standard_normal((rows, cols), np.float32)
        return np.ascontiguousarray(quants.quantize(weights, tensor_type)).view(np.uint8)
    blocks = rng.integers(0, 256, (rows, cols // block_elements, block_bytes), np.uint8)
    for offset in _F16_FIELDS.get(tensor_type, (0,)):
        halves = rng.uniform(0.5, 1.5, blocks.shape[:2]).astype("<f2")
        blocks[..., offset : offset + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def quantize(x: Floats) -> Quantised:
    """Section 2 for rows (M, K) of whole groups, none of which is all zeros."""
    groups = x.reshape(len(x), -1, _GROUP)
    amax = np.abs(groups).max(axis=2)
    codes = np.rint(groups * (np.float32(127) / amax)[..., None]).astype(np.int8)
    return Quantised(codes.reshape(x.shape), amax / np.float32(127), _half_sums(codes))


def quantised_difference(actual: Quantised, exact: Doubles) -> float:
    """How far codes are from rows `exact` (M, K) beyond their rounding, or scales and sums from what they should be."""
    groups = np.pad(exact, ((0, 0), (0, -exact.shape[1] % _GROUP))).reshape(len(exact), -1, _GROUP)
    amax = np.abs(groups).max(axis=2)
    codes = actual.codes.reshape(groups.shape)
    off = np.abs(codes - groups * (127 / amax)[..., None]).max() - 0.5
    distances = off / 127, difference(actual.scales, amax / 127), difference(actual.sums, _half_sums(codes))
    return float(np.max(distances))


def _half_sums(codes: NDArray[np.int8]) -> NDArray[np.int16]:
    sums: NDArray[np.int16] = codes.reshape(*codes.shape[:2], 2, -1).sum(axis=3, dtype=np.int16)
    return sums


def rms_norm(x: Floats, weight: Floats, eps: float) -> Doubles:
    """Section 5 for rows (M, n)."""
    rows = x.astype(np.float64)
    normed: Doubles = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + eps) * weight
    return normed


def swiglu(gate_up: Floats) -> Doubles:
    """Section 6: rows (M, 2 n) to (M, n)."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    gated: Doubles = gate / (1 + np.exp(-gate)) * up
    return gated


def rotate(heads: Floats, cos_sin: Floats, *, adjacent: bool) -> Doubles:
    """Section 7: heads (M, num_heads, head_dim) by their rows' cos and sin (M, rope_dim / 2, 2)."""
    num_pairs = cos_sin.shape[1]
    first = slice(0, 2 * num_pairs, 2) if adjacent else slice(0, num_pairs)
    second = slice(1, 2 * num_pairs, 2) if adjacent else slice(num_pairs, 2 * num_pairs)
    cos, sin = np.moveaxis(cos_sin.astype(np.float64)[:, None], -1, 0)
    rotated = heads.astype(np.float64)
    rotated[..., first] = heads[..., first] * cos - heads[..., second] * sin
    rotated[..., second] = heads[..., second] * cos + heads[..., first] * sin
    return rotated


def quantize_kv(x: NDArray[Any], kv_cache_type: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Section 8: what a cache holds of keys or values (num_tokens, num_kv_heads, head_dim): codes in its type, and
    scales (num_tokens, num_kv_heads), all 1 but in an int8 cache."""
    item_type = KV_ITEM_TYPES[kv_cache_type]
    if item_type != np.int8:
        largest = np.finfo(item_type).max
        return x.clip(-largest, largest).astype(item_type), np.ones(x.shape[:2], np.float32)
    clipped = x.astype(np.float32).clip(-65504, 65504)
    scales = (np.abs(clipped).max(axis=2) / np.float32(127)).astype(np.float16)
    live = np.where(scales > 0, scales, np.inf).astype(np.float32)
    codes = np.rint(clipped * (np.float32(1) / live)[..., None])
    return codes.clip(-127, 127).astype(np.int8), scales


def attention(q: Floats, keys: NDArray[Any], values: NDArray[Any]) -> Doubles:
    """Section 9 for the last positions of a sequence: q (M, num_heads, head_dim) over keys and values of all positions,
    (num_tokens, num_kv_heads, head_dim)."""
    grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[2]).astype(np.float64) * q.shape[2] ** -0.5
    score = np.einsum("mkgd,tkd->mkgt", grouped, keys.astype(np.float64), optimize=True)
    hidden = np.arange(len(keys)) > np.arange(len(keys) - len(q), len(keys))[:, None]
    score = np.where(hidden[:, None, None], -np.inf, score)
    p = np.exp(score - score.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    attended: Doubles = np.einsum("mkgt,tkd->mkgd", p, values.astype(np.float64), optimize=True)
    return attended.reshape(q.shape)


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities of a row of finite logits."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs: Doubles = shifted - np.log(np.exp(shifted).sum())
    return logprobs


def sampled_id(logits: Floats, sampling: SamplingParams, position: int, choice: int) -> int:
    """Section 10 for a row of logits.

    A weight may differ from a kernel's by its exp's rounding, and so may an id that lies within that of the next one.
    """
    if sampling.is_greedy:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - logits.max()) * sampling.inverse_temperature
    weights = np.rint(np.exp(scaled) * 2.0**31).astype(np.int64)
    order = np.argsort(-weights, kind="stable")
    kept = weights[order]
    kept[sampling.top_k or len(kept) :] = 0
    need = sampling.top_p_weight * int(kept.sum()) >> 31
    kept[int(np.searchsorted(kept.cumsum(), need)) + 1 :] = 0
    kept[kept < sampling.min_p_weight] = 0
    weights[order] = kept
    target = _random_bits(sampling.seed, position, choice) * int(kept.sum()) >> 64
    return int(np.searchsorted(weights.cumsum(), target, side="right"))


def _random_bits(seed: int, position: int, choice: int) -> int:
    """The low 64 bits of Philox4x32-10 (Salmon et al., SC11) for the counter (position, choice, 0, 0)."""
    c0, c1, c2, c3 = position, choice, 0, 0
    k0, k1 = seed & _WORD, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0 | c1 << 32
