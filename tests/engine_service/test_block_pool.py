"""Blocks, their reference counts, and which of the unused ones are given away first."""

from __future__ import annotations

from collections import Counter

import pytest

from engine_service.scheduling.block_pool import (
    BlockNotAllocatedError,
    BlockNotFoundError,
    BlockPool,
    IntegrityError,
    OutOfBlocksError,
)
from service_common.errors import ConfigError


def make_pool(num_blocks: int) -> tuple[BlockPool, list[int]]:
    """A pool, and the ids that it evicts."""
    evicted: list[int] = []
    return BlockPool(num_blocks, evicted.append), evicted


def check(pool: BlockPool, references: dict[int, int], marked: set[int]) -> None:
    """Checks the pool against what the test knows."""
    pool.check_integrity(Counter(references), frozenset(marked))


def test_releasing_or_sharing_a_free_block_is_an_error() -> None:
    """A count never goes below zero, and a free block can be neither shared nor kept (KV-3)."""
    pool, _ = make_pool(2)
    (block_id,) = pool.take(1)
    pool.release(block_id)
    for operation, name in ((pool.release, "released"), (pool.retain, "shared"), (pool.keep, "kept")):
        with pytest.raises(BlockNotAllocatedError, match=f"block {block_id} is free and cannot be {name}"):
            operation(block_id)
    assert (pool.num_available, pool.reference_count(block_id)) == (2, 0)


@pytest.mark.parametrize("block_id", [-1, 4, 2**40])
def test_block_ids_are_checked_against_the_pool(block_id: int) -> None:
    """An id outside the pool raises BlockNotFoundError in every operation (KV-6, KV-11)."""
    pool, _ = make_pool(4)
    pool.take(4)
    for operation in (pool.retain, pool.release, pool.keep, pool.reference_count):
        with pytest.raises(BlockNotFoundError, match=f"block {block_id} is not in the pool of 4 blocks"):
            operation(block_id)


def test_a_block_is_free_only_after_its_last_release() -> None:
    """References are counted one by one."""
    pool, _ = make_pool(1)
    (block_id,) = pool.take(1)
    pool.retain(block_id)
    pool.retain(block_id)
    for expected in (2, 1, 0):
        assert pool.num_available == 0
        pool.release(block_id)
        assert pool.reference_count(block_id) == expected
    assert pool.num_available == 1


@pytest.mark.parametrize("count", [-1, 3])
def test_a_pool_gives_no_more_than_it_has(count: int) -> None:
    """Taking a negative number or more than are available is refused whole."""
    pool, _ = make_pool(2)
    with pytest.raises(OutOfBlocksError, match=f"{count} blocks are wanted and 2 are free"):
        pool.take(count)
    assert pool.take(0) == []
    assert pool.num_available == 2


def test_a_pool_without_blocks_is_refused() -> None:
    """A cache of no blocks is an error of configuration."""
    with pytest.raises(ConfigError, match="the KV cache has 0 blocks; it needs at least 1"):
        make_pool(0)


def test_kept_blocks_are_given_away_last_and_the_least_recently_used_first() -> None:
    """Free blocks go before kept ones; of those the one that was released longest ago goes, and its owner is told."""
    pool, evicted = make_pool(4)
    blocks = pool.take(3)
    for block_id in blocks:
        pool.keep(block_id)
    for block_id in (blocks[1], blocks[2], blocks[0]):
        pool.release(block_id)
    assert (pool.num_available, pool.num_kept) == (4, 3)
    pool.take(1)
    assert evicted == []
    assert set(pool.take(2)) == {blocks[1], blocks[2]}
    assert (evicted, pool.num_evictions, pool.num_kept) == ([blocks[1], blocks[2]], 2, 1)


def test_a_kept_block_comes_back_and_is_then_the_most_recently_used() -> None:
    """Retaining a kept block takes it out of the line; released again it stands at the end (MODEL-2)."""
    pool, evicted = make_pool(2)
    first, second = pool.take(2)
    for block_id in (first, second):
        pool.keep(block_id)
        pool.release(block_id)
    pool.retain(first)
    assert (pool.num_available, pool.reference_count(first)) == (1, 1)
    check(pool, {first: 1}, {first, second})
    pool.release(first)
    pool.take(1)
    assert evicted == [second]


def test_an_evicted_block_is_like_any_other() -> None:
    """What takes an evicted block and releases it leaves it free, not kept."""
    pool, _ = make_pool(1)
    (block_id,) = pool.take(1)
    pool.keep(block_id)
    pool.release(block_id)
    pool.take(1)
    pool.release(block_id)
    assert (pool.num_available, pool.num_kept) == (1, 0)
    check(pool, {}, set())


def test_check_integrity_states_what_is_wrong() -> None:
    """A count that nobody answers for, a lost block and a wrong mark are found and named (KV-4, KV-12)."""
    pool, _ = make_pool(3)
    (used,) = pool.take(1)
    check(pool, {used: 1}, set())
    with pytest.raises(IntegrityError, match=f"block {used} has reference count 1, and 2 tables hold it"):
        check(pool, {used: 2}, set())
    with pytest.raises(IntegrityError, match=f"block {used} is not kept for the prefix cache"):
        check(pool, {used: 1}, {used})
    with pytest.raises(BlockNotFoundError, match="block 9"):
        check(pool, {used: 1, 9: 1}, set())
    lost = pool._free_ids.pop()
    with pytest.raises(IntegrityError, match=f"block {lost} with reference count 0 is 0 times in the free list"):
        check(pool, {used: 1}, set())
