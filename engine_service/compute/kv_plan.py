"""The arithmetic of the KV cache's size. No OpenCL here, so that a start can be refused before a device is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine_service.config import EngineConfig
from engine_service.models.hyperparameters import Hyperparameters
from service_common.errors import ConfigError
from service_common.gguf_reader import GGUFReader
from service_common.resources import available_memory_bytes

_KV_SHARE = 4  # the cache takes one part in so many of the memory that the weights leave free
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


def plan_for(config: EngineConfig, reader: GGUFReader, hyperparameters: Hyperparameters) -> KVCachePlan:
    """The plan for a model as it is to be served, from what `config` asks for and the memory there is now."""
    free_bytes = available_memory_bytes() - sum(tensor.nbytes for tensor in reader.tensors.values())
    return plan_kv_cache(
        shape_for(config, hyperparameters),
        budget_bytes=config.kv_cache_bytes or max(0, free_bytes) // _KV_SHARE,
        trained_context=hyperparameters.context_length,
        wanted_context=config.context_length,
        max_num_seqs=config.max_num_seqs,
    )


def shape_for(config: EngineConfig, hyperparameters: Hyperparameters) -> KVCacheShape:
    """The shape of a model's cache."""
    return KVCacheShape(
        num_layers=hyperparameters.num_layers,
        num_kv_heads=hyperparameters.num_kv_heads,
        head_dim=hyperparameters.head_dim,
        block_size=config.block_size,
        kv_cache_type=config.kv_cache_type,
    )


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
