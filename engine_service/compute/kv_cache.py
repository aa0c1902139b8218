"""The paged KV cache on the device, and the arithmetic of its size.

Per layer, K is [num_blocks][num_kv_heads][head_dim][block_size] and V is
[num_blocks][num_kv_heads][block_size][head_dim], head_dim rounded up to 8. Attention reads nothing else, also for the
tokens of the present chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pyopencl as cl

from engine_service.compute.device import Device
from service_common.errors import ConfigError

ITEM_BYTES = {"f16": 2, "f32": 4}


@dataclass(frozen=True)
class KVCacheShape:
    """What one token's keys and values take, and how tokens are grouped into blocks."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    kv_cache_type: str

    @property
    def padded_head_dim(self) -> int:
        """head_dim rounded up to a multiple of 8, the width of a vector."""
        return (self.head_dim + 7) // 8 * 8

    @property
    def plane_block_bytes(self) -> int:
        """Bytes of one block's keys (or values) in one layer."""
        return self.num_kv_heads * self.block_size * self.padded_head_dim * ITEM_BYTES[self.kv_cache_type]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * self.num_layers * self.plane_block_bytes


class KVCachePlan(NamedTuple):
    """How many blocks there will be, and the longest context they serve, in tokens."""

    num_blocks: int
    context_length: int


def plan_kv_cache(
    shape: KVCacheShape, *, budget_bytes: int, trained_context: int, wanted_context: int | None, max_num_seqs: int
) -> KVCachePlan:
    """Blocks that fit `budget_bytes`, never more than `max_num_seqs` full contexts need.

    The served context is `wanted_context`, or else the trained one, shrunk to what the blocks hold. ConfigError with
    the arithmetic when a wanted context does not fit, or not even one block does.
    """
    num_affordable = budget_bytes // shape.block_bytes
    capacity = num_affordable * shape.block_size
    context = wanted_context or min(trained_context, capacity)
    if context > trained_context:
        raise ConfigError(f"--context-length is {context}; the model was trained for at most {trained_context} tokens")
    if num_affordable == 0 or context > capacity:
        raise ConfigError(
            f"--kv-cache-bytes is {budget_bytes}; a context of {max(context, 1)} tokens needs "
            f"{-(-max(context, 1) // shape.block_size)} blocks of {shape.block_bytes} bytes, and {num_affordable} fit: "
            "give more memory, or a smaller --context-length"
        )
    num_wanted = max_num_seqs * -(-context // shape.block_size)
    return KVCachePlan(min(num_affordable, num_wanted), context)


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
