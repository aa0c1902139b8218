"""Blocks, their reference counts and the tables that hold them."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest

from engine_service.scheduling.block_manager import (
    BlockManager,
    BlockNotAllocatedError,
    BlockNotFoundError,
    BlockPool,
    IntegrityError,
    OutOfBlocksError,
    SequenceExistsError,
    SequenceNotFoundError,
)
from engine_service.scheduling.sequence import SequenceId
from service_common.errors import ConfigError

A, B, C = SequenceId(1, 0), SequenceId(2, 0), SequenceId(2, 1)


def test_allocate_takes_blocks_and_free_returns_them() -> None:
    """Free and used blocks always sum to the pool, and every block comes back."""
    manager = BlockManager(8, 4)
    assert len(set(manager.allocate(A, 3))) == 3
    assert (manager.num_free_blocks, manager.num_used_blocks) == (5, 3)
    manager.allocate(B, 5)
    assert set(manager.block_table(A)) | set(manager.block_table(B)) == set(range(8))
    manager.free(A)
    manager.free(B)
    assert (manager.num_free_blocks, manager.num_used_blocks, manager.sequence_ids()) == (8, 0, frozenset())
    manager.check_integrity()


def test_can_allocate_tells_what_allocate_will_do() -> None:
    """allocate succeeds exactly where can_allocate says so, and a refusal changes nothing."""
    manager = BlockManager(4, 4)
    assert manager.can_allocate(4)
    assert not manager.can_allocate(5)
    with pytest.raises(OutOfBlocksError, match="5 blocks are wanted and 4 are free"):
        manager.allocate(A, 5)
    assert manager.num_free_blocks == 4
    assert manager.sequence_ids() == frozenset()


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (32, 1), (33, 2), (2**40, 2**35)])
def test_blocks_for_is_exact(num_tokens: int, num_blocks: int) -> None:
    """The number of blocks is rounded up exactly, at any size (KV-9)."""
    assert BlockManager(1, 32).blocks_for(num_tokens) == num_blocks


def test_a_table_grows_in_place_and_reading_it_copies_nothing() -> None:
    """Everyone sees one and the same table, also after it has grown (KV-8)."""
    manager = BlockManager(8, 4)
    table = manager.allocate(A, 2)
    first = list(table)
    assert manager.allocate(A, 1) is table
    assert manager.block_table(A) is table
    assert list(table[:2]) == first


def test_fork_shares_blocks_until_the_last_holder_frees_them() -> None:
    """Blocks of a forked table return to the pool with their last holder, whoever that is (KV-4)."""
    manager = BlockManager(8, 4)
    parent = manager.allocate(A, 3)
    child = manager.fork(A, B)
    assert list(child) == list(parent)
    assert manager.num_used_blocks == 3
    manager.allocate(B, 1)
    assert len(parent) == 3
    manager.check_integrity()
    manager.free(A)
    assert manager.num_used_blocks == 4
    manager.check_integrity()
    manager.free(B)
    assert manager.num_free_blocks == 8
    manager.check_integrity()


def test_a_child_that_holds_blocks_cannot_be_forked_into() -> None:
    """Forking into a sequence that has a table is an error and changes no count."""
    manager = BlockManager(4, 4)
    manager.allocate(A, 1)
    manager.allocate(B, 1)
    with pytest.raises(SequenceExistsError, match="sequence 2/0 already has a block table"):
        manager.fork(A, B)
    manager.check_integrity()


@pytest.mark.parametrize(
    "operation",
    [lambda manager: manager.free(C), lambda manager: manager.block_table(C), lambda manager: manager.fork(C, B)],
    ids=["free", "block_table", "fork"],
)
def test_an_unknown_sequence_has_its_own_error(operation: Callable[[BlockManager], object]) -> None:
    """A sequence without blocks raises SequenceNotFoundError, not the error of an unknown block (KV-11)."""
    manager = BlockManager(4, 4)
    manager.allocate(A, 1)
    with pytest.raises(SequenceNotFoundError, match="sequence 2/1 has no block table"):
        operation(manager)
    manager.check_integrity()


def test_freeing_twice_is_an_error() -> None:
    """The second free of a sequence fails and leaves all counts as they were (KV-3)."""
    manager = BlockManager(4, 4)
    manager.allocate(A, 2)
    manager.free(A)
    with pytest.raises(SequenceNotFoundError):
        manager.free(A)
    assert manager.num_free_blocks == 4
    manager.check_integrity()


def test_releasing_or_sharing_a_free_block_is_an_error() -> None:
    """A count never goes below zero, and a free block cannot be shared (KV-3)."""
    pool = BlockPool(2)
    (block_id,) = pool.take(1)
    pool.release(block_id)
    with pytest.raises(BlockNotAllocatedError, match=f"block {block_id} is free and cannot be released"):
        pool.release(block_id)
    with pytest.raises(BlockNotAllocatedError, match=f"block {block_id} is free and cannot be shared"):
        pool.retain(block_id)
    assert (pool.num_free, pool.reference_count(block_id)) == (2, 0)


@pytest.mark.parametrize("block_id", [-1, 4, 2**40])
def test_block_ids_are_checked_against_the_pool(block_id: int) -> None:
    """An id outside the pool raises BlockNotFoundError in every operation (KV-6, KV-11)."""
    pool = BlockPool(4)
    pool.take(4)
    for operation in (pool.retain, pool.release, pool.reference_count):
        with pytest.raises(BlockNotFoundError, match=f"block {block_id} is not in the pool of 4 blocks"):
            operation(block_id)


def test_a_block_is_free_only_after_its_last_release() -> None:
    """References are counted one by one."""
    pool = BlockPool(1)
    (block_id,) = pool.take(1)
    pool.retain(block_id)
    pool.retain(block_id)
    for expected in (2, 1, 0):
        assert pool.num_free == 0
        pool.release(block_id)
        assert pool.reference_count(block_id) == expected
    assert pool.num_free == 1


@pytest.mark.parametrize("count", [-1, 3])
def test_a_pool_gives_no_more_than_it_has(count: int) -> None:
    """Taking a negative number or more than are free is refused whole."""
    pool = BlockPool(2)
    with pytest.raises(OutOfBlocksError):
        pool.take(count)
    assert pool.num_free == 2


def test_taking_no_blocks_takes_none() -> None:
    """Zero blocks is a valid number, and leaves the pool as it was."""
    pool = BlockPool(2)
    assert pool.take(0) == []
    assert pool.num_free == 2


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (-1, 4), (4, 0), (4, -2)])
def test_a_pool_without_room_is_refused(num_blocks: int, block_size: int) -> None:
    """A cache of no blocks, or of empty blocks, is an error of configuration."""
    with pytest.raises(ConfigError, match="at least 1"):
        BlockManager(num_blocks, block_size)


def test_check_integrity_states_a_block_held_twice() -> None:
    """A table that holds a block twice is found and named (KV-12)."""
    manager = BlockManager(4, 4)
    table = manager.allocate(A, 2)
    table[0] = table[1]
    with pytest.raises(IntegrityError, match="the block table of sequence 1/0 holds a block twice"):
        manager.check_integrity()


def test_check_integrity_states_a_count_that_does_not_match_its_holders() -> None:
    """A block that a table holds without being counted is found and named (KV-4, KV-12)."""
    manager = BlockManager(4, 4)
    manager.allocate(A, 1)
    table = manager.allocate(B, 1)
    free_id = next(block_id for block_id in range(4) if block_id not in (*manager.block_table(A), table[0]))
    table.append(free_id)
    with pytest.raises(IntegrityError, match=f"block {free_id} has reference count 0, and 1 tables hold it"):
        manager.check_integrity()


def test_check_integrity_states_a_block_outside_the_pool() -> None:
    """A table with an id outside the pool is found and named (KV-6, KV-12)."""
    manager = BlockManager(4, 4)
    manager.allocate(A, 1).append(9)
    with pytest.raises(BlockNotFoundError, match="block 9"):
        manager.check_integrity()


def test_check_integrity_states_a_block_lost_from_the_free_list() -> None:
    """A block that nobody holds and that is not free is found and named (KV-12)."""
    manager = BlockManager(4, 4)
    lost = manager._pool._free_ids.pop()
    with pytest.raises(IntegrityError, match=f"block {lost} with reference count 0 is 0 times in the free list"):
        manager.check_integrity()


def test_random_operations_keep_every_invariant() -> None:
    """After each of 2,000 random operations the invariants hold, and the same seed gives the same tables (KV-4)."""

    def tables(seed: int) -> list[list[int]]:
        rng, manager = random.Random(seed), BlockManager(12, 4)
        live: list[SequenceId] = []
        for number in range(2000):
            action = rng.random()
            wanted = rng.randrange(4)
            if live and action < 0.4:
                manager.free(live.pop(rng.randrange(len(live))))
            elif live and action < 0.6:
                child = SequenceId(number, 1)
                manager.fork(rng.choice(live), child)
                live.append(child)
            elif manager.can_allocate(wanted):
                live.append(SequenceId(number, 0))
                manager.allocate(live[-1], wanted)
            manager.check_integrity()
        return [list(manager.block_table(sequence_id)) for sequence_id in live]

    assert tables(1) == tables(1)


def test_cycles_of_allocating_and_freeing_are_flat_in_memory() -> None:
    """Ten thousand cycles leave no more memory behind than a hundred (KV-2)."""
    manager = BlockManager(64, 4)

    def cycle(count: int) -> int:
        for number in range(count):
            manager.allocate(SequenceId(number, 0), 40)
            manager.free(SequenceId(number, 0))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = cycle(100)
        assert cycle(10_000) - before < 4096
    finally:
        tracemalloc.stop()
