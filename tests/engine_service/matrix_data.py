"""Seeded matrices as a GGUF file holds them: rows of random blocks whose scales are sane, of any supported type."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

from engine_service.compute.quant_layouts import SUPPORTED_TYPES, layout_for

Bytes = NDArray[np.uint8]

ALL_TYPES = sorted(SUPPORTED_TYPES)
QUANTISED_TYPES = [tensor_type for tensor_type in ALL_TYPES if layout_for(tensor_type).is_quantised]
FLOAT_TYPES = [tensor_type for tensor_type in ALL_TYPES if not layout_for(tensor_type).is_quantised]

_HALF_OFFSETS = {
    GgmlType.Q8_0: (0,),
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_0: (0,),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
}


def file_rows(tensor_type: GgmlType, n: int, k: int, *, seed: int = 0, fill: int | None = None) -> Bytes:
    """(n, row bytes) of random weights; `fill` makes every byte but the f16 scales that value."""
    rng = np.random.default_rng(seed)
    if tensor_type not in _HALF_OFFSETS:
        weights = rng.standard_normal((n, k), dtype=np.float32)
        return np.ascontiguousarray(gguf.quants.quantize(weights, tensor_type)).view(np.uint8).reshape(n, -1)
    shape = n, layout_for(tensor_type).file_row_bytes(k)
    raw = rng.integers(0, 256, shape, dtype=np.uint8) if fill is None else np.full(shape, fill, np.uint8)
    blocks = raw.reshape(n, -1, gguf.GGML_QUANT_SIZES[tensor_type][1])
    for offset in _HALF_OFFSETS[tensor_type]:
        scales = rng.uniform(-0.01, 0.02, blocks.shape[:2]).astype(np.float16)
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return raw


def dequantise_file(raw: Bytes, tensor_type: GgmlType) -> NDArray[np.float32]:
    """gguf's own reading of file rows: (n, k)."""
    values: NDArray[np.float32] = gguf.quants.dequantize(raw, tensor_type)
    return values.reshape(len(raw), -1)
