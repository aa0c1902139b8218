"""Oracle of docs/numerics.md section 10 in numpy and Python integers: sorting instead of selecting, and no vectors.

It restates the definition and shares no code with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_MASK = 0xFFFFFFFF
_LOG_COEFFICIENTS = (
    *(-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    *(2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_EXP_COEFFICIENTS = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def fma(a: Floats, b: Floats | float, c: Floats | float) -> Floats:
    """a × b + c rounded once: the float64 sum is rounded to odd, after which rounding to f32 is exact."""
    product = a.astype(np.float64) * np.asarray(b, np.float32)
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = product + addend
    virtual = total - product
    lost = (product - (total - virtual)) + (addend - virtual)
    bits = total.view(np.int64)
    away = (lost > 0) == (total > 0)
    odd = np.where((lost != 0) & (bits & 1 == 0), bits + np.where(away, 1, -1), bits)
    return odd.view(np.float64).astype(np.float32)


def exp(x: Floats) -> Floats:
    """exp of docs/numerics.md section 3, for x <= 0."""
    x32 = np.where(x < -87, np.float32(0), x).astype(np.float32)
    t = fma(x32, 1.44269504, 12582912)
    n = t - np.float32(12582912)
    r = fma(n, 2.12194440e-4, fma(n, -0.693359375, x32))
    p = np.full_like(r, 1.9875691500e-4)
    for coefficient in _EXP_COEFFICIENTS:
        p = fma(p, r, coefficient)
    y = fma(p, r * r, r) + np.float32(1)
    scaled = (y.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)
    return np.where(x < -87, np.float32(0), scaled)


def weights(logits: Floats, inverse_temperature: np.float32) -> NDArray[np.int64]:
    """w[i], integers in [0, 2³¹]; the largest logit must be finite."""
    shifted = (logits - logits.max()) * inverse_temperature
    return np.rint(exp(shifted).astype(np.float64) * 2.0**31).astype(np.int64)


def sample(
    logits: Floats,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    position: int = 0,
    choice: int = 0,
    banned_ids: Sequence[int] = (),
) -> int:
    """The token of one row of logits [V]."""
    row = logits.copy()
    row[list(banned_ids)] = -np.inf
    if temperature == 0 or top_k == 1 or not np.isfinite(row.max()):
        return int(row.argmax())
    kept = kept_weights(row, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    x0, x1, _, _ = philox4x32_10((position, choice, 0, 0), (seed & _MASK, seed >> 32))
    target = (x0 + (x1 << 32)) * int(kept.sum()) >> 64
    return int(np.searchsorted(kept.cumsum(), target, side="right"))


def kept_weights(row: Floats, *, temperature: float, top_k: int, top_p: float, min_p: float) -> NDArray[np.int64]:
    """Weights in id order after the filters; what they drop has weight 0."""
    w = weights(row, np.float32(1) / np.float32(temperature))
    order = np.argsort(-w, kind="stable")
    kept = w[order]
    if top_k > 0:
        kept[top_k:] = 0
    need = math.ceil(float(np.float32(top_p)) * 2**31) * int(kept.sum()) >> 31
    kept[int(np.searchsorted(kept.cumsum(), need)) + 1 :] = 0
    kept[kept < math.ceil(float(np.float32(min_p)) * 2**31)] = 0
    in_id_order = np.zeros_like(kept)
    in_id_order[order] = kept
    return in_id_order


def logprobs(logits: Floats) -> NDArray[np.float32]:
    """Log-probability of every token by the integer sum of the definition."""
    total = int(weights(logits, np.float32(1)).sum())
    return ((logits.astype(np.float64) - float(logits.max())) - math.log(total / 2**31)).astype(np.float32)


def top_ids(logits: Floats, count: int) -> list[int]:
    """The `count` largest logits' ids, best first, ties by lowest id."""
    return [int(index) for index in np.argsort(-logits, kind="stable")[:count]]


ONE = 1 << 31


def log2_fixed(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integer nearest to log2(x) × 2¹⁴ by section 10's polynomial; x positive, rounded to f32 first."""
    bits = x.astype(np.float32).view(np.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).view(np.float32) - np.float32(1)
    p = np.full_like(f, 7.0376836292e-2)
    for coefficient in _LOG_COEFFICIENTS:
        p = fma(p, f, coefficient)
    z = f * f
    log = f + fma(np.full_like(f, -0.5), z, p * f * z)
    scaled = fma(log, 23637.1155, exponent.astype(np.float32) * np.float32(16384))
    return np.rint(scaled.astype(np.float64)).astype(np.int64)


def share(weight: int, total: int) -> int:
    """(weight × total) >> 31, at least 1."""
    return max(1, weight * total >> 31)


def integer(probability: float) -> int:
    """ceil(probability × 2³¹) of its f32."""
    return math.ceil(float(np.float32(probability)) * ONE)


def keep_shortest_prefix(w: NDArray[np.int64], order: NDArray[np.int64], need: int) -> NDArray[np.int64]:
    """The weights of the first in `order` whose sum reaches `need`."""
    kept = np.zeros_like(w)
    end = int(np.searchsorted(w[order].cumsum(), need)) + 1
    kept[order[:end]] = w[order[:end]]
    return kept


def typical_p(w: NDArray[np.int64], probability: float) -> NDArray[np.int64]:
    """The weights whose surprise is nearest the mean."""
    live = np.flatnonzero(w)
    surprise = (31 << 14) - log2_fixed(w[live])
    mean = int((w[live] * surprise).sum()) // int(w.sum())
    order = live[np.argsort(np.abs(surprise - mean), kind="stable")]
    return keep_shortest_prefix(w, order, share(integer(probability), int(w.sum())))


def xtc(w: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Without all weights of at least this share but the least of them."""
    members = np.flatnonzero(w >= share(integer(threshold), int(w.sum())))
    if not len(members):
        return w
    kept = members[np.flatnonzero(w[members] == w[members].min())[-1]]
    return np.where(np.isin(np.arange(len(w)), members) & (np.arange(len(w)) != kept), 0, w)


def mirostat(w: NDArray[np.int64], max_surprise: int) -> NDArray[np.int64]:
    """The weights of at most this surprise, or the first of the largest alone."""
    surprise = log2_fixed(np.array([w.sum()])) - log2_fixed(np.maximum(w, 1))
    fits = (w > 0) & (surprise <= max_surprise)
    return np.where(fits if fits.any() else np.arange(len(w)) == w.argmax(), w, 0)


def lane_sum(values: Floats) -> np.float32:
    """Eight lanes in order, then l + w for w = 4, 2, 1."""
    lanes = np.zeros(8, np.float32)
    padded = np.concatenate((values, np.zeros(-len(values) % 8, np.float32))).reshape(-1, 8)
    for row in padded:
        lanes = lanes + row
    for width in (4, 2, 1):
        lanes = lanes[:width] + lanes[width : 2 * width]
    return np.float32(lanes[0])


def top_n_sigma(logits: Floats, n: float) -> Floats:
    """Logits below the largest less n standard deviations become -infinity."""
    live = logits > -np.inf
    away = np.where(live, logits.max() - logits, np.float32(0)).astype(np.float32)
    mean = lane_sum(away) / np.float32(live.sum())
    e = np.where(live, away - mean, np.float32(0)).astype(np.float32)
    lanes = np.zeros(8, np.float32)
    for row in np.concatenate((e, np.zeros(-len(e) % 8, np.float32))).reshape(-1, 8):
        lanes = fma(row, row, lanes)
    width = np.float32(n) * np.sqrt(lane_sum(lanes) / np.float32(live.sum()))
    return np.where(live & (away > width), np.float32(-np.inf), logits)


def adjusted(logits: Floats, adjustments: NDArray[Any]) -> Floats:
    """Each (x > 0 ? x / divisor : x × divisor) − subtrahend, in f32 and in order."""
    result = logits.copy()
    for token_id, divisor, subtrahend in adjustments.tolist():
        x, d = result[token_id], np.float32(divisor)
        result[token_id] = (x / d if x > 0 else x * d) - np.float32(subtrahend)
    return result
