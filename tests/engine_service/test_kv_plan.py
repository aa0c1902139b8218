"""The size of the KV cache: exact arithmetic, refused with the numbers when it does not fit."""

from __future__ import annotations

import pytest

from engine_service.compute.kv_plan import KVCacheShape, plan_kv_cache
from service_common.errors import ConfigError

SHAPE = KVCacheShape(num_layers=3, num_kv_heads=2, head_dim=20, block_size=16, kv_cache_type="f16")


def test_block_bytes_are_exact() -> None:
    """Keys and values of all layers, the head rounded up to 24, two bytes an element (KV-9, GGUF-1, ATT-1)."""
    assert SHAPE.plane_block_bytes == 2 * 16 * 24 * 2
    assert SHAPE.block_bytes == 2 * 3 * SHAPE.plane_block_bytes


def test_the_pool_never_exceeds_the_budget_nor_what_can_be_used() -> None:
    """As many blocks as fit, and no more than all sequences together could hold."""
    tight = plan_kv_cache(
        SHAPE, budget_bytes=10 * SHAPE.block_bytes + 1, trained_context=1000, wanted_context=None, max_num_seqs=4
    )
    assert tight == (10, 160)
    roomy = plan_kv_cache(SHAPE, budget_bytes=1 << 40, trained_context=1000, wanted_context=None, max_num_seqs=4)
    assert roomy == (4 * 63, 1000)


@pytest.mark.parametrize(
    ("budget_blocks", "wanted", "named"),
    [(0, None, "--kv-cache-bytes"), (9, 160, "10 blocks"), (100, 1001, "trained for at most 1000")],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(budget_blocks: int, wanted: int | None, named: str) -> None:
    """No block at all, a context beyond the budget, a context beyond the training (KV-9)."""
    with pytest.raises(ConfigError, match=named):
        plan_kv_cache(
            SHAPE,
            budget_bytes=budget_blocks * SHAPE.block_bytes,
            trained_context=1000,
            wanted_context=wanted,
            max_num_seqs=4,
        )


def test_sizes_are_python_integers_of_any_size() -> None:
    """A hostile context neither wraps nor allocates (BACKEND-3)."""
    huge = KVCacheShape(num_layers=1 << 20, num_kv_heads=1 << 20, head_dim=256, block_size=256, kv_cache_type="f32")
    with pytest.raises(ConfigError):
        plan_kv_cache(huge, budget_bytes=1 << 40, trained_context=1 << 32, wanted_context=None, max_num_seqs=4096)
