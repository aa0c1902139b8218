"""The KV cache's pages as numpy has them: an array of (block, kv head) with fields `codes` and, for int8, `scales`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.kernels.reference_ops import Cached

DEFINES: dict[str, dict[str, int | str]] = {"f16": {}, "f32": {"KV_F32": 1}, "int8": {"KV_INT8": 1}}
_ITEM_TYPES = {"f16": np.float16, "f32": np.float32, "int8": np.int8}


class Pages(NamedTuple):
    """K, codes [padded head_dim][block_size], and V, codes [block_size][padded head_dim], of one layer."""

    keys: NDArray[Any]
    values: NDArray[Any]

    def by_slot(self) -> tuple[Cached, Cached]:
        """K and V of all slots, with padded heads."""
        return _by_slot(self.keys, (0, 3, 1, 2)), _by_slot(self.values, (0, 2, 1, 3))


def unwritten_pages(num_blocks: int, num_kv_heads: int, head_dim: int, block_size: int, kv_cache_type: str) -> Pages:
    """Pages whose bits are all 1, which are NaN where they are floats."""
    padded, item_type = (head_dim + 7) // 8 * 8, _ITEM_TYPES[kv_cache_type]
    scales: list[Any] = [("scales", np.float16, (block_size,))] if kv_cache_type == "int8" else []
    shapes = (padded, block_size), (block_size, padded)
    dtypes = [np.dtype([("codes", item_type, shape), *scales]) for shape in shapes]
    num_heads = num_blocks * num_kv_heads
    return Pages(*(np.full(num_heads * d.itemsize, 0xFF, np.uint8).view(d).reshape(num_blocks, -1) for d in dtypes))


def _by_slot(pages: NDArray[Any], axes: tuple[int, ...]) -> Cached:
    codes = pages["codes"].transpose(axes)
    scales = pages["scales"].swapaxes(1, 2) if "scales" in (pages.dtype.names or ()) else np.ones(codes.shape[:3])
    num_slots = codes.shape[0] * codes.shape[1]
    return Cached(codes.reshape(num_slots, *codes.shape[2:]), scales.reshape(num_slots, -1))
