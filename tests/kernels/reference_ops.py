"""Oracle of docs/numerics.md sections 2, 3 and 5 to 9 in numpy, to the bit; shares no code with the engine.

All arrays are f32 unless said otherwise. `fma` rounds once, so that what is written here in the order of the definition
has the definition's bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

PARTITION = 256
_EXP_COEFFICIENTS = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


class Quantized(NamedTuple):
    """Section 2: q int8 [M][Kp], scale f32 [M][Kp / 32], sums int16 [M][Kp / 32][2]."""

    q: NDArray[np.int8]
    scale: Floats
    sums: NDArray[np.int16]


def fma(a: Floats | float, b: Floats | float, c: Floats | float) -> Floats:
    """a × b + c rounded once: the float64 sum is rounded to odd, after which rounding to f32 is exact."""
    a64, b64, c64 = (np.asarray(value, np.float32).astype(np.float64) for value in (a, b, c))
    product = a64 * b64
    total = np.asarray(product + c64)
    virtual = total - product
    lost = (product - (total - virtual)) + (c64 - virtual)
    bits = total.view(np.int64)
    odd = np.where((lost != 0) & (bits & 1 == 0), bits + np.where((lost > 0) == (total > 0), 1, -1), bits)
    rounded: Floats = odd.view(np.float64).astype(np.float32)
    return rounded


def quantize(x: Floats) -> Quantized:
    """Section 2 for rows x [M][K]."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    amax = np.abs(padded).max(axis=2)
    live = amax >= np.float32(2.0**-60)
    safe = np.where(live, amax, np.float32(1))
    q = np.rint(padded * (np.float32(127) / safe)[..., None]) * live[..., None]
    sums = q.reshape(*amax.shape, 2, 16).sum(axis=3)
    scale = np.where(live, amax / np.float32(127), np.float32(0))
    return Quantized(q.reshape(len(x), -1).astype(np.int8), scale, sums.astype(np.int16))


def exp(x: Floats) -> Floats:
    """Section 3."""
    z = np.clip(x, np.float32(-87), np.float32(88))
    t = fma(z, 1.44269504, 12582912)
    n = t - np.float32(12582912)
    r = fma(n, 2.12194440e-4, fma(n, -0.693359375, z))
    p = np.full_like(r, 1.9875691500e-4)
    for coefficient in _EXP_COEFFICIENTS:
        p = fma(p, r, coefficient)
    y = fma(p, r * r, r) + np.float32(1)
    scaled = (y.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)
    result: Floats = np.where(x < -87, np.float32(0), scaled)
    return result


def _fold(lanes: Floats) -> Floats:
    """Sum over the last axis (a power of two long): lane l plus lane l + w, w halving down to 1."""
    while (width := lanes.shape[-1] // 2) > 0:
        lanes = lanes[..., :width] + lanes[..., width:]
    folded: Floats = lanes[..., 0]
    return folded


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Section 5 for rows x [M][n]."""
    n = x.shape[1]
    groups = np.pad(x, ((0, 0), (0, -n % 32))).reshape(len(x), -1, 32)
    lanes = reduce(lambda s, group: fma(group, group, s), groups.swapaxes(0, 1), np.zeros((len(x), 32), np.float32))
    r = np.float32(1) / np.sqrt(_fold(lanes) / np.float32(n) + np.float32(eps))
    y: Floats = (x * r[:, None]) * weight
    return y


def swiglu(gate: Floats, up: Floats) -> Floats:
    """Section 6, elementwise."""
    return (gate / (np.float32(1) + exp(-gate))) * up


def cos_sin_table(num_positions: int, rope_dim: int, base: float = 10000.0) -> Floats:
    """Unscaled rotary angles [num_positions][rope_dim / 2][2]: cos, sin."""
    frequencies = base ** (-np.arange(0, rope_dim, 2) / rope_dim)
    angles = np.arange(num_positions)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def rotate(x: Floats, cos_sin: Floats, *, adjacent: bool) -> Floats:
    """Section 7: heads x [M][num_heads][head_dim] by their rows' angles cos_sin [M][rope_dim / 2][2]."""
    num_pairs = cos_sin.shape[1]
    first = slice(0, 2 * num_pairs, 2) if adjacent else slice(0, num_pairs)
    second = slice(1, 2 * num_pairs, 2) if adjacent else slice(num_pairs, 2 * num_pairs)
    cos, sin = cos_sin[:, None, :, 0], cos_sin[:, None, :, 1]
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first] = fma(a, cos, -(b * sin))
    y[..., second] = fma(b, cos, a * sin)
    return y


@dataclass(frozen=True)
class Cached:
    """Section 8: codes [num_tokens][num_kv_heads][head_dim] in the cache's type, scales [num_tokens][num_kv_heads]."""

    codes: NDArray[Any]
    scales: NDArray[Any]

    def __getitem__(self, tokens: Any) -> Cached:
        """Those of some tokens."""
        return Cached(self.codes[tokens], self.scales[tokens])

    @property
    def values(self) -> Doubles:
        """The numbers that it stands for."""
        return self.codes * self.scales[..., None].astype(np.float64)

    def of_query_heads(self, num_heads: int) -> tuple[Floats, Floats]:
        """Codes and scales in f32, each kv head as often as query heads share it."""
        group = num_heads // self.codes.shape[1]
        codes, scales = (np.repeat(x.astype(np.float32), group, axis=1) for x in (self.codes, self.scales))
        return codes, scales


def to_cache(x: Floats, kv_cache_type: str) -> Cached:
    """Section 8 for K or V [num_tokens][num_kv_heads][head_dim]; scales are f16 in an int8 cache, else all 1."""
    if kv_cache_type == "int8":
        clipped = np.clip(x, -65504, 65504)
        scales = (np.abs(clipped).max(axis=2) / np.float32(127)).astype(np.float16)
        live = scales > 0
        r = np.float32(1) / np.where(live, scales, np.float16(1)).astype(np.float32)
        codes = np.clip(np.rint(clipped * (r * live)[..., None]), -127, 127)
        return Cached(codes.astype(np.int8), scales)
    codes = np.clip(x, -65504, 65504).astype(np.float16) if kv_cache_type == "f16" else x
    return Cached(codes, np.ones(x.shape[:2], np.float32))


def attention(q: Floats, k: Cached, v: Cached, scale: float) -> Floats:
    """Section 9 for one row: q [num_heads][head_dim] over its visible tokens."""
    scaled = q * np.float32(scale)
    starts = range(0, len(k.codes), PARTITION)
    parts = [
        _attention_partition(scaled, k[start : start + PARTITION], v[start : start + PARTITION]) for start in starts
    ]
    _, length, o = reduce(_merge, parts)
    return o * (np.float32(1) / length)[:, None]


def _attention_partition(q: Floats, k: Cached, v: Cached) -> tuple[Floats, Floats, Floats]:
    """(m [num_heads], l [num_heads], o [num_heads][head_dim]) of one partition."""
    k_codes, k_scales = k.of_query_heads(len(q))
    v_codes, v_scales = v.of_query_heads(len(q))
    num_tokens, num_heads, head_dim = k_codes.shape
    score = np.zeros((num_heads, num_tokens), np.float32)
    for d in range(head_dim):
        score = fma(q[:, d, None], k_codes[:, :, d].T, score)
    score = score * k_scales.T
    m = score.max(axis=1)
    p = exp(score - m[:, None])
    lanes = np.zeros((num_heads, 8), np.float32)
    for eight in np.pad(p, ((0, 0), (0, -num_tokens % 8))).reshape(num_heads, -1, 8).swapaxes(0, 1):
        lanes = lanes + eight
    scaled_p = p * v_scales.T
    o = np.zeros((num_heads, head_dim), np.float32)
    for j in range(num_tokens):
        o = fma(scaled_p[:, j, None], v_codes[j], o)
    return m, _fold(lanes), o


def _merge(total: tuple[Floats, Floats, Floats], part: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats]:
    m = np.maximum(total[0], part[0])
    a, b = exp(total[0] - m), exp(part[0] - m)
    return m, fma(total[1], a, part[1] * b), fma(total[2], a[:, None], part[2] * b[:, None])


def attention_float64(q: Doubles, k: Doubles, v: Doubles, scale: float) -> Doubles:
    """Textbook softmax attention in float64, shapes as `attention`."""
    group = q.shape[0] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    score = np.einsum("hd,thd->ht", q, k) * scale
    p = np.exp(score - score.max(axis=1, keepdims=True))
    result: Doubles = np.einsum("ht,thd->hd", p / p.sum(axis=1, keepdims=True), v)
    return result
