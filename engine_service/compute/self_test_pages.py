"""The pages of a KV cache as numpy has them, for the self-test."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_service.compute.device import Device
from engine_service.compute.kv_cache import KVCache
from engine_service.compute.self_test_reference import KV_ITEM_TYPES, Doubles, Floats, quantize_kv


class CachePages:
    """What the first layer of a cache holds, by slot: (num_slots, num_kv_heads, padded head_dim).

    A page is one kv head of a block: K's codes are (padded head_dim, block_size), V's (block_size, padded head_dim).
    """

    def __init__(self, device: Device, cache: KVCache) -> None:
        shape = cache.shape
        padded, size, self._kv_cache_type = shape.padded_head_dim, shape.block_size, shape.kv_cache_type
        item_type = KV_ITEM_TYPES[self._kv_cache_type]
        self._has_scales = item_type == np.int8
        scales: list[Any] = [("scales", "<f2", (size,))] if self._has_scales else []
        self._k_dtype = np.dtype([("codes", item_type, (padded, size)), *scales])
        self._v_dtype = np.dtype([("codes", item_type, (size, padded)), *scales])
        self._num_pages = cache.num_blocks, shape.num_kv_heads
        self.num_tokens = cache.num_blocks * size, shape.num_kv_heads, padded
        self._device, self._cache = device, cache

    def write(self, keys: Floats, values: Floats) -> None:
        """Fills all slots with `keys` and `values`, rounded."""
        for buffer, dtype, tokens, axes in (
            (self._cache.keys[0], self._k_dtype, keys, (0, 2, 3, 1)),
            (self._cache.values[0], self._v_dtype, values, (0, 2, 1, 3)),
        ):
            codes, scales = quantize_kv(tokens, self._kv_cache_type)
            pages = np.empty(self._num_pages, dtype)
            by_block = codes.reshape(self._num_pages[0], -1, *codes.shape[1:])
            pages["codes"] = by_block.transpose(axes)
            if self._has_scales:
                pages["scales"] = scales.reshape(by_block.shape[:3]).swapaxes(1, 2)
            self._device.write(buffer, pages)

    def read(self) -> tuple[Doubles, Doubles]:
        """The keys and values of all slots."""
        keys = self._read(self._cache.keys[0], self._k_dtype, (0, 3, 1, 2))
        return keys, self._read(self._cache.values[0], self._v_dtype, (0, 2, 1, 3))

    def _read(self, buffer: Any, dtype: np.dtype[Any], axes: tuple[int, ...]) -> Doubles:
        pages: NDArray[Any] = np.empty(self._num_pages, dtype)
        self._device.read(buffer, pages)
        tokens: Doubles = pages["codes"].transpose(axes).astype(np.float64)
        if self._has_scales:
            tokens *= pages["scales"].swapaxes(1, 2)[..., None]
        return tokens.reshape(self.num_tokens)
