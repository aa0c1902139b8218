"""Oracle of docs/numerics.md section 4 in numpy, to the bit, over the device layouts; shares no code with the engine.

The layouts are read as the docstring of engine_service/compute/quant_layouts.py states them, one formula per field.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.kernels.reference_ops import Floats, Quantized, fma

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

SEGMENT = 512


class Format(NamedTuple):
    """A quantised layout: bits of a code, code of zero, whether there is a minimum, codes per group scale (0: none)."""

    bits: int
    zero: int
    has_min: bool
    group: int


FORMATS = {
    "Q8_0": Format(8, 128, False, 0),
    "Q4_0": Format(4, 8, False, 0),
    "Q4_1": Format(4, 0, True, 0),
    "Q5_0": Format(5, 16, False, 0),
    "Q5_1": Format(5, 0, True, 0),
    "Q4_K": Format(4, 0, True, 32),
    "Q5_K": Format(5, 0, True, 32),
    "Q6_K": Format(6, 32, False, 16),
}


class QuantisedMatrix(NamedTuple):
    """N x K weights: codes less zero (N, K); dw (N, K / 32); mw alike or None; scales per 16 (N, K / 16) or ones."""

    codes: Ints
    scale: Floats
    minimum: Floats | None
    half_scales: Ints


def _quads(vectors: Bytes, bits: int) -> Bytes:
    """Planes (..., bits, 32) of 32 codes of 8 rows to (..., 8 quads, 32)."""
    if bits == 8:
        return vectors
    quads = [(vectors[..., p // 2, :] >> (4 * (p % 2))) & 15 for p in range(8)]
    if bits == 5:
        quads = [quad | (((vectors[..., 4, :] >> p) & 1) << 4) for p, quad in enumerate(quads)]
    if bits == 6:
        quads = [quad | (((vectors[..., 4 + p // 4, :] >> (2 * (p % 4))) & 3) << 4) for p, quad in enumerate(quads)]
    return np.stack(quads, axis=-2)


def unpack_quantised(name: str, packed: Bytes, n: int, k: int) -> QuantisedMatrix:
    """What the bytes of layout `name` hold for an (n, k) matrix."""
    form = FORMATS[name]
    blocks = 8 if form.group else 1
    groups, tiles = -(-n // 8), k // (32 * blocks)
    data = packed.reshape(groups, tiles, -1)
    at = 32 * form.bits * blocks
    vectors = data[..., :at].reshape(groups, tiles * blocks, form.bits, 32)
    quads = _quads(vectors, form.bits).reshape(groups, tiles * blocks, 8, 8, 4)
    codes = quads.transpose(0, 3, 1, 2, 4).reshape(groups * 8, k)[:n].astype(np.int64) - form.zero

    def rows(values: NDArray[np.generic]) -> NDArray[np.float32]:
        """(groups, tiles, blocks of a tile or 1, 8 rows) to (n, K / 32), repeated for each block of a tile."""
        spread = np.broadcast_to(values, (groups, tiles, blocks, 8))
        return spread.transpose(0, 3, 1, 2).reshape(groups * 8, -1)[:n].astype(np.float32)

    def halves(offset: int) -> NDArray[np.float32]:
        return rows(np.ascontiguousarray(data[..., offset : offset + 16]).view(np.float16)[:, :, None, :])

    half_scales: Ints = np.ones((n, k // 16), np.int64)
    group_bytes = 128 if form.group else 0
    scale = halves(at + group_bytes)
    minimum = halves(at + group_bytes + 16) if form.has_min else None
    if form.group == 32:
        scale = scale * rows(data[..., at : at + 64].reshape(groups, tiles, 8, 8))
        assert minimum is not None
        minimum = minimum * -rows(data[..., at + 64 : at + 128].reshape(groups, tiles, 8, 8))
    if form.group == 16:
        pairs = data[..., at : at + 128].view(np.int8).reshape(groups, tiles, 8, 8, 2)
        half_scales = pairs.transpose(0, 3, 1, 2, 4).reshape(groups * 8, -1)[:n].astype(np.int64)
    return QuantisedMatrix(codes, scale, minimum, half_scales)


def unpack_float(name: str, packed: Bytes, n: int, k: int) -> Floats:
    """The (n, k) weights that a float layout holds."""
    elements = packed.view({"F32": np.uint32}.get(name, np.uint16)).reshape(-1, k, 8)
    matrix = elements.transpose(0, 2, 1).reshape(-1, k)[:n]
    if name == "F16":
        return matrix.copy().view(np.float16).astype(np.float32)
    return (matrix.astype(np.uint32) << 16).view(np.float32) if name == "BF16" else matrix.copy().view(np.float32)


def dequantise(matrix: QuantisedMatrix) -> Floats:
    """Section 4, last paragraph: (N, K)."""
    scale = np.repeat(matrix.scale, 32, axis=1)
    codes = (matrix.codes * np.repeat(matrix.half_scales, 16, axis=1)).astype(np.float32)
    if matrix.minimum is None:
        return codes * scale
    return fma(codes, scale, np.repeat(matrix.minimum, 32, axis=1))


def matmul_quantised(x: Quantized, matrix: QuantisedMatrix) -> Floats:
    """Section 4 for quantised weights: (M, N)."""
    q, codes = x.q.astype(np.int64), matrix.codes * np.repeat(matrix.half_scales, 16, axis=1)
    sums = x.sums.astype(np.int64).sum(axis=2)
    total = np.zeros((len(q), len(codes)), np.float32)
    for first in range(0, q.shape[1], SEGMENT):
        acc = np.zeros_like(total)
        for k in range(first, min(first + SEGMENT, q.shape[1]), 32):
            integers = (q[:, k : k + 32] @ codes[:, k : k + 32].T).astype(np.float32)
            d = x.scale[:, k // 32, None]
            acc = fma(integers, matrix.scale[:, k // 32] * d, acc)
            if matrix.minimum is not None:
                acc = fma(matrix.minimum[:, k // 32], sums[:, k // 32, None].astype(np.float32) * d, acc)
        total = total + acc
    return total


def matmul_float(x: Floats, weights: Floats) -> Floats:
    """Section 4 for float weights (N, K) and x (M, K): (M, N)."""
    total = np.zeros((len(x), len(weights)), np.float32)
    for first in range(0, x.shape[1], SEGMENT):
        acc = np.zeros_like(total)
        for k in range(first, min(first + SEGMENT, x.shape[1])):
            acc = fma(weights[:, k], x[:, k, None], acc)
        total = total + acc
    return total
