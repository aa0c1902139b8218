"""The arithmetic of the KV cache's size. No OpenCL here, so that a start can be refused before a device is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine_service.config import EngineConfig
from engine_service.kv_budget import KVBudget
from engine_service.models.hyperparameters import Hyperparameters
from service_common.errors import ConfigError
from service_common.gguf_reader import GGUFReader
from service_common.resources import available_memory_bytes


class KVFormat(NamedTuple):
    """Bytes of a cached element, and of the scale that a token's elements of a kv head share: 0 if there is none."""

    item_bytes: int
    scale_bytes: int


KV_FORMATS = {"f16": KVFormat(2, 0), "f32": KVFormat(4, 0), "int8": KVFormat(1, 2)}


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
    def head_bytes(self) -> int:
        """Bytes of one token's key (or value) of one kv head, its scale included."""
        item_bytes, scale_bytes = KV_FORMATS[self.kv_cache_type]
        return self.padded_head_dim * item_bytes + scale_bytes

    @property
    def plane_block_bytes(self) -> int:
        """Bytes of one block's keys (or values) in one layer."""
        return self.num_kv_heads * self.block_size * self.head_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * self.num_layers * self.plane_block_bytes

    def __str__(self) -> str:
        """How `block_bytes` comes about."""
        item_bytes, scale_bytes = KV_FORMATS[self.kv_cache_type]
        elements = f"{self.padded_head_dim} × {item_bytes}"
        return (
            f"K and V 2 × {self.num_layers} layers × {self.num_kv_heads} kv heads × "
            f"{f'({elements} + {scale_bytes})' if scale_bytes else elements} bytes = "
            f"{self.block_bytes // self.block_size} bytes a token; × {self.block_size} tokens = "
            f"{self.block_bytes} bytes a block"
        )


class KVCachePlan(NamedTuple):
    """How many blocks there will be, and the longest context they serve, in tokens."""

    shape: KVCacheShape
    num_blocks: int
    context_length: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return self.num_blocks * self.shape.block_bytes

    def __str__(self) -> str:
        """The arithmetic in one line."""
        num_tokens = self.num_blocks * self.shape.block_size
        return f"{self.shape}; × {self.num_blocks} blocks = {self.nbytes} bytes for {num_tokens} tokens"


def plan_for(config: EngineConfig, reader: GGUFReader, hyperparameters: Hyperparameters) -> KVCachePlan:
    """The plan for a model as it is to be served, from what `config` asks for and the memory there is now."""
    weight_bytes = sum(tensor.nbytes for tensor in reader.tensors.values())
    shape = KVCacheShape(
        num_layers=hyperparameters.num_layers,
        num_kv_heads=hyperparameters.num_kv_heads,
        head_dim=hyperparameters.head_dim,
        block_size=config.block_size,
        kv_cache_type=config.kv_cache_type,
    )
    return plan_kv_cache(
        shape,
        budget=config.kv_budget,
        free_bytes=max(0, available_memory_bytes() - weight_bytes),
        trained_context=hyperparameters.context_length,
        wanted_context=config.context_length,
        max_num_seqs=config.max_num_seqs,
    )


def plan_kv_cache(
    shape: KVCacheShape,
    *,
    budget: KVBudget,
    free_bytes: int,
    trained_context: int,
    wanted_context: int | None,
    max_num_seqs: int,
) -> KVCachePlan:
    """Blocks that fit `budget`, never more than `max_num_seqs` full contexts need.

    The served context is `wanted_context`, or else the trained one, shrunk to what the blocks hold. ConfigError with
    the arithmetic when a wanted context does not fit, or not even one block for each of `max_num_seqs` sequences, or
    when the blocks take more than the `free_bytes` that the weights leave.
    """
    budget_bytes = budget.num_bytes(free_bytes)
    given = f"--kv-cache-bytes is {budget_bytes}" + f", {budget.amount}% of {free_bytes} free" * budget.is_share
    num_affordable = budget_bytes // shape.block_bytes
    capacity = num_affordable * shape.block_size
    context = wanted_context or min(trained_context, capacity)
    if context > trained_context:
        raise ConfigError(f"--context-length is {context}; the model was trained for at most {trained_context} tokens")
    if context > capacity:
        raise ConfigError(
            f"{given}; a context of {context} tokens needs {-(-context // shape.block_size)} blocks, and "
            f"{num_affordable} fit: give more memory, or a smaller --context-length ({shape})"
        )
    if num_affordable < max_num_seqs:
        raise ConfigError(
            f"{given}; {max_num_seqs} sequences need as many blocks of {shape.block_size} tokens, and "
            f"{num_affordable} fit: give more memory, or a smaller --max-num-seqs ({shape})"
        )
    plan = KVCachePlan(shape, min(num_affordable, max_num_seqs * -(-context // shape.block_size)), context)
    if plan.nbytes > free_bytes:
        raise ConfigError(f"{given}; {free_bytes} bytes are free beside the weights: give less ({plan})")
    return plan
