"""The paged KV cache on the device.

Per layer, K is [num_blocks][num_kv_heads][head_dim][block_size] and V is
[num_blocks][num_kv_heads][block_size][head_dim], head_dim rounded up to 8; in an int8 cache each kv head of a block is
followed by its scales, f16 [block_size]. Attention reads nothing else, also for the tokens of the present chunk.
"""

from __future__ import annotations

import pyopencl as cl

from engine_service.compute.device import Device
from engine_service.compute.kv_plan import KVCacheShape


class KVCache:
    """Owns the device memory of the cache: `keys[layer]` and `values[layer]`, all zero and touched at the start."""

    def __init__(self, device: Device, shape: KVCacheShape, num_blocks: int) -> None:
        self.shape, self.num_blocks = shape, num_blocks
        nbytes = num_blocks * shape.plane_block_bytes
        self.keys: list[cl.Buffer] = [device.zeros(nbytes, f"kv_cache.keys.{i}") for i in range(shape.num_layers)]
        self.values: list[cl.Buffer] = [device.zeros(nbytes, f"kv_cache.values.{i}") for i in range(shape.num_layers)]
        device.finish()

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.num_blocks * self.shape.block_bytes
