"""The size of the KV cache: exact arithmetic, refused with the numbers when it does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from engine_service.compute.kv_plan import KVCachePlan, KVCacheShape, plan_kv_cache
from engine_service.kv_budget import KVBudget
from service_common.errors import ConfigError

SHAPE = KVCacheShape(num_layers=3, num_kv_heads=2, head_dim=20, block_size=16, kv_cache_type="f16")
ENOUGH = 1 << 40


def plan(budget: str, *, shape: KVCacheShape = SHAPE, **changes: Any) -> KVCachePlan:
    """A plan for four sequences of a model of 1000 positions, unless `changes` say otherwise."""
    fields = {"free_bytes": ENOUGH, "trained_context": 1000, "wanted_context": None, "max_num_seqs": 4}
    return plan_kv_cache(shape, budget=KVBudget.parse(budget), **(fields | changes))


@pytest.mark.parametrize(("kv_cache_type", "head_bytes"), [("f16", 24 * 2), ("f32", 24 * 4), ("int8", 24 + 2)])
def test_block_bytes_are_exact(kv_cache_type: str, head_bytes: int) -> None:
    """Keys and values of all layers, the head rounded up to 24, with an f16 scale where int8 needs one (KV-9, KV-13,
    GGUF-1, ATT-1)."""
    shape = KVCacheShape(num_layers=3, num_kv_heads=2, head_dim=20, block_size=16, kv_cache_type=kv_cache_type)
    assert shape.plane_block_bytes == 2 * 16 * head_bytes
    assert shape.block_bytes == 2 * 3 * shape.plane_block_bytes


def test_the_pool_never_exceeds_the_budget_nor_what_can_be_used() -> None:
    """As many blocks as fit, and no more than all sequences together could hold."""
    tight = plan(str(10 * SHAPE.block_bytes + 1))
    assert (tight.num_blocks, tight.context_length, tight.nbytes) == (10, 160, 10 * SHAPE.block_bytes)
    roomy = plan("1023GiB")
    assert (roomy.num_blocks, roomy.context_length) == (4 * 63, 1000)


def test_a_share_is_of_what_is_free() -> None:
    """25% of 100 blocks' worth of bytes are 25 blocks."""
    assert plan("25%", free_bytes=100 * SHAPE.block_bytes).num_blocks == 25
    assert plan("100%", free_bytes=100 * SHAPE.block_bytes).num_blocks == 100


def test_the_plan_tells_its_arithmetic() -> None:
    """One line has every factor, from an element's bytes to the tokens that fit."""
    shape = KVCacheShape(num_layers=3, num_kv_heads=2, head_dim=20, block_size=16, kv_cache_type="int8")
    assert str(KVCachePlan(shape, num_blocks=10, context_length=160)) == (
        "K and V 2 × 3 layers × 2 kv heads × (24 × 1 + 2) bytes = 312 bytes a token; × 16 tokens = 4992 bytes a block; "
        "× 10 blocks = 49920 bytes for 160 tokens"
    )


@pytest.mark.parametrize(
    ("num_blocks", "changes", "words"),
    [
        (9, {"wanted_context": 160}, ["a context of 160 tokens needs 10 blocks, and 9 fit", "--context-length"]),
        (3, {}, ["4 sequences need as many blocks of 16 tokens, and 3 fit", "--max-num-seqs"]),
        (0, {"max_num_seqs": 1}, ["1 sequences need", "0 fit"]),
        (100, {"wanted_context": 1001}, ["--context-length is 1001", "trained for at most 1000"]),
        (9, {"free_bytes": 9 * SHAPE.block_bytes - 1}, [f"{9 * SHAPE.block_bytes - 1} bytes are free", "give less"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(
    num_blocks: int, changes: dict[str, Any], words: list[str]
) -> None:
    """A context beyond the budget, fewer blocks than sequences, a context beyond the training, more than is free: the
    message has the limit and what it comes from (KV-9)."""
    with pytest.raises(ConfigError) as caught:
        plan(str(num_blocks * SHAPE.block_bytes + 1), **changes)
    if "wanted_context" not in changes or num_blocks == 9:
        words = [
            *words,
            f"--kv-cache-bytes is {num_blocks * SHAPE.block_bytes + 1};",
            f"= {SHAPE.block_bytes} bytes a block",
        ]
    for word in words:
        assert word in str(caught.value)


def test_a_share_that_does_not_suffice_is_told_in_bytes_and_percent() -> None:
    """The refusal of a share names it, what it is of, and what it comes to (KV-9)."""
    with pytest.raises(ConfigError, match="--kv-cache-bytes is 250, 25% of 1000 free; 4 sequences need"):
        plan("25%", free_bytes=1000)


def test_sizes_are_python_integers_of_any_size() -> None:
    """A hostile context neither wraps nor allocates (BACKEND-3)."""
    huge = KVCacheShape(num_layers=1 << 20, num_kv_heads=1 << 20, head_dim=256, block_size=256, kv_cache_type="f32")
    with pytest.raises(ConfigError):
        plan("1023GiB", shape=huge, trained_context=1 << 32, max_num_seqs=4096)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1", 1), ("2147483648", 1 << 31), ("3KiB", 3 << 10), ("512MiB", 1 << 29), ("2GiB", 1 << 31), ("1%", 10)],
)
def test_budgets_are_bytes_units_or_a_share(text: str, num_bytes: int) -> None:
    """Plain bytes, binary units, and percent of what is free, here 1000 bytes and some."""
    assert KVBudget.parse(text).num_bytes(1099) == num_bytes


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-1", "1.5GiB", "2GB", "25 %", "0x10", "٣", "9" * 30, "1\n"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    """Anything else is refused with the value and the forms there are."""
    with pytest.raises(ConfigError, match=r"--kv-cache-bytes is .*2GiB.*1% to 100%"):
        KVBudget.parse(text)
