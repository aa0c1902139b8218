"""The tables that hold blocks, and what sequences reuse of each other's."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest

from engine_service.scheduling.block_manager import (
    BlockManager,
    Reuse,
    SequenceExistsError,
    SequenceNotFoundError,
)
from engine_service.scheduling.block_pool import BlockNotFoundError, IntegrityError, OutOfBlocksError
from engine_service.scheduling.messages import BlockCopy
from engine_service.scheduling.sequence import Sequence
from service_common.errors import ConfigError
from tests.engine_service.scheduler_world import make_request

NO_REUSE = Reuse(None, [], None, 0)


def make_sequence(number: int, *token_ids: int, salt: str | None = "", length: int = 0) -> Sequence:
    """A sequence of these tokens, or of `length` tokens that no other number has."""
    prompt_ids = token_ids or tuple(1000 * number + position for position in range(length))
    request = make_request(number, prompt_ids=prompt_ids, cache_salt=salt)
    return Sequence(request=request, choice=0, rank=(0.0, number, 0), max_tokens=8, end_token_ids=frozenset(), credit=8)


def opened(manager: BlockManager, sequence: Sequence) -> Reuse:
    """Gives the sequence a table, and tells what it reuses."""
    reuse = manager.find_room(sequence)
    assert reuse is not None
    sequence.block_table = manager.open(sequence, reuse)
    sequence.num_computed = reuse.num_tokens
    return reuse


def compute(manager: BlockManager, sequence: Sequence) -> None:
    """All known tokens of the sequence are computed, in one step."""
    manager.start_copy(sequence.id)
    manager.finish_copies()
    sequence.num_computed = sequence.num_tokens
    manager.commit(sequence)
    manager.check_integrity()


def served(manager: BlockManager, sequence: Sequence) -> list[int]:
    """Opens, computes and frees; the blocks that it had at its end."""
    opened(manager, sequence)
    compute(manager, sequence)
    table = list(manager.block_table(sequence.id))
    manager.free(sequence)
    manager.check_integrity()
    return table


def num_cached(manager: BlockManager, *token_ids: int) -> int:
    """How many of these tokens are cached."""
    return manager._find_reuse(make_sequence(0, *token_ids, -1)).num_tokens


def test_open_takes_blocks_and_free_returns_them() -> None:
    """Used and available blocks always sum to the pool, and every block comes back (KV-9)."""
    manager = BlockManager(8, 4)
    first, second = make_sequence(1, length=9), make_sequence(2, length=20)
    opened(manager, first)
    assert (manager.num_available_blocks, manager.num_used_blocks) == (5, 3)
    opened(manager, second)
    assert set(manager.block_table(first.id)) | set(manager.block_table(second.id)) == set(range(8))
    manager.free(first)
    manager.free(second)
    assert (manager.num_available_blocks, manager.num_used_blocks, manager.sequence_ids()) == (8, 0, frozenset())
    manager.check_integrity()


def test_find_room_tells_whether_there_are_blocks_for_all_tokens() -> None:
    """There is room exactly as long as enough blocks are unused; growing takes the last one, and no more."""
    manager = BlockManager(4, 4)
    assert manager.find_room(make_sequence(1, length=17)) is None
    first = make_sequence(2, length=12)
    opened(manager, first)
    assert manager.find_room(make_sequence(3, length=5)) is None
    assert manager.can_grow()
    manager.grow(first.id)
    assert not manager.can_grow()
    with pytest.raises(OutOfBlocksError, match="1 blocks are wanted and 0 are free"):
        manager.grow(first.id)


def test_room_is_counted_as_if_others_had_been_freed() -> None:
    """What only the named sequences hold counts as room; what they share with others does not."""
    manager = BlockManager(4, 2)
    first, second, third = make_sequence(1, 1, 2, 3), make_sequence(2, 1, 2, 9), make_sequence(3, length=4)
    opened(manager, first)
    compute(manager, first)
    assert opened(manager, second).block_ids == list(first.block_table[:1])
    manager.grow(second.id)
    assert manager.find_room(third) is None
    assert manager.find_room(third, without=[first.id]) is None
    assert manager.find_room(third, without=[second.id]) is not None
    assert manager.find_room(make_sequence(4, length=8), without=[first.id, second.id]) is not None


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (32, 1), (33, 2), (2**40, 2**35)])
def test_blocks_for_is_exact(num_tokens: int, num_blocks: int) -> None:
    """The number of blocks is rounded up exactly, at any size (KV-9)."""
    assert BlockManager(1, 32).blocks_for(num_tokens) == num_blocks


def test_a_table_grows_in_place_and_reading_it_copies_nothing() -> None:
    """Everyone sees one and the same table, also after it has grown (KV-8)."""
    manager = BlockManager(8, 4)
    sequence = make_sequence(1, length=8)
    opened(manager, sequence)
    first = list(sequence.block_table)
    manager.grow(sequence.id)
    assert manager.block_table(sequence.id) is sequence.block_table
    assert list(sequence.block_table[:2]) == first


def test_whole_blocks_of_the_same_prefix_are_shared() -> None:
    """A second sequence holds the first one's blocks while that runs; they leave with the last holder (KV-4)."""
    manager = BlockManager(8, 4)
    first = make_sequence(1, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    second = make_sequence(2, 1, 2, 3, 4, 5, 6, 7, 8, 0)
    opened(manager, first)
    compute(manager, first)
    reuse = opened(manager, second)
    assert (reuse.block_ids, reuse.copy_source, reuse.num_tokens) == (list(first.block_table[:2]), None, 8)
    assert manager.num_used_blocks == 4
    manager.free(first)
    assert manager.num_used_blocks == 3
    manager.check_integrity()
    manager.free(second)
    assert manager.num_used_blocks == 0
    manager.check_integrity()


def test_at_least_one_token_is_left_to_compute() -> None:
    """Of a prompt that is cached whole all but the last token is reused, the last block as a copy (D7)."""
    manager = BlockManager(8, 4)
    table = served(manager, make_sequence(1, 1, 2, 3, 4, 5, 6, 7, 8))
    sequence = make_sequence(2, 1, 2, 3, 4, 5, 6, 7, 8)
    reuse = opened(manager, sequence)
    assert (reuse.block_ids, reuse.copy_source, reuse.num_tokens) == (table[:1], table[1], 7)
    assert manager.start_copy(sequence.id) == BlockCopy(table[1], sequence.block_table[1])
    assert sequence.block_table[1] not in table


@pytest.mark.parametrize(
    ("token_ids", "num_tokens"), [((1, 2, 3, 4, 5, 9, 9), 5), ((1, 2, 9, 9, 9), 2), ((1, 2, 3, 4, 5, 6, 7, 8), 6)]
)
def test_a_prefix_that_ends_or_diverges_within_a_block_is_copied(token_ids: tuple[int, ...], num_tokens: int) -> None:
    """The block's first tokens are kept in a copy; the block itself stays as it is, also the last, unfilled one."""
    manager = BlockManager(8, 4)
    table = served(manager, make_sequence(1, 1, 2, 3, 4, 5, 6))
    sequence = make_sequence(2, *token_ids)
    reuse = opened(manager, sequence)
    assert reuse.num_tokens == num_tokens
    assert reuse.copy_source == table[num_tokens // 4]
    compute(manager, sequence)
    assert opened(manager, make_sequence(3, 1, 2, 3, 4, 5, 6, 7)).num_tokens == 6


def test_generated_tokens_are_reused_by_the_next_turn() -> None:
    """Blocks that generation has filled are found by a prompt that goes on from them."""
    manager = BlockManager(8, 4)
    sequence = make_sequence(1, 1, 2, 3)
    opened(manager, sequence)
    for token_id in (4, 5, 6, 7):
        sequence.num_computed = sequence.num_tokens
        manager.commit(sequence)
        sequence.generated_ids.append(token_id)
        if sequence.num_tokens > len(sequence.block_table) * 4:
            manager.grow(sequence.id)
    manager.free(sequence)
    assert opened(manager, make_sequence(2, 1, 2, 3, 4, 5, 6, 7, 8, 9)).num_tokens == 6


def test_without_a_salt_nothing_is_read_or_left() -> None:
    """A sequence that opts out finds nothing, and others find nothing of it."""
    manager = BlockManager(8, 4)
    served(manager, make_sequence(1, 1, 2, 3, 4, 5))
    assert opened(manager, make_sequence(2, 1, 2, 3, 4, 5, salt=None)) == NO_REUSE
    served(manager, make_sequence(3, 9, 9, 9, 9, 9, salt=None))
    assert opened(manager, make_sequence(4, 9, 9, 9, 9, 9)).num_tokens == 0
    assert manager.stats().num_prefix_queries == 2


def test_the_same_tokens_computed_twice_are_kept_once() -> None:
    """Two sequences that computed the same block at the same time end up with one; the other is free again."""
    manager = BlockManager(8, 4)
    first, second = make_sequence(1, 1, 2, 3, 4, 5), make_sequence(2, 1, 2, 3, 4, 6)
    opened(manager, first)
    opened(manager, second)
    compute(manager, first)
    assert manager.num_used_blocks == 4
    compute(manager, second)
    assert manager.num_used_blocks == 3
    assert second.block_table[0] == first.block_table[0]


def test_unused_blocks_are_evicted_oldest_first_and_ends_before_beginnings() -> None:
    """When room is wanted the least recently used prefix goes, from its end (MODEL-2)."""
    manager = BlockManager(6, 2)
    served(manager, make_sequence(1, 1, 2, 3, 4, 5, 6))
    served(manager, make_sequence(2, 7, 8, 9, 0, 1, 2))
    assert manager.stats().num_cached_blocks == 6
    opened(manager, make_sequence(3, length=4))
    assert manager.stats().num_evictions == 2
    assert num_cached(manager, 1, 2, 3, 4, 5, 6) == 2
    assert num_cached(manager, 7, 8, 9, 0, 1, 2) == 6
    manager.check_integrity()


def test_what_was_used_again_is_evicted_later() -> None:
    """A hit makes a prefix the most recently used one."""
    manager = BlockManager(4, 2)
    served(manager, make_sequence(1, 1, 2, 3))
    served(manager, make_sequence(2, 7, 8, 9))
    served(manager, make_sequence(3, 1, 2, 3))
    opened(manager, make_sequence(4, length=4))
    assert num_cached(manager, 1, 2, 3) == 3
    assert num_cached(manager, 7, 8, 9) == 0


def test_a_copy_is_given_up_where_its_source_takes_the_last_room() -> None:
    """Where there is no room for a block and its copy both, the tokens are computed instead."""
    manager = BlockManager(2, 4)
    served(manager, make_sequence(1, 1, 2, 3, 4, 5, 6, 7, 8))
    reuse = opened(manager, make_sequence(2, 1, 2, 3, 4, 5, 6, 9))
    assert (len(reuse.block_ids), reuse.copy_source, reuse.num_tokens) == (1, None, 4)


def test_the_source_of_a_copy_is_not_given_away_before_the_copy_is_made() -> None:
    """Until the step that copies has ended the source counts as used; then it may be evicted."""
    manager = BlockManager(4, 4)
    (source,) = served(manager, make_sequence(1, 1, 2, 3))
    copying = make_sequence(2, 1, 2, 9)
    opened(manager, copying)
    assert manager.num_available_blocks == 2
    assert manager.start_copy(copying.id) == BlockCopy(source, copying.block_table[0])
    assert manager.num_available_blocks == 2
    manager.finish_copies()
    assert manager.num_available_blocks == 3
    assert manager.start_copy(copying.id) is None
    assert manager.stats().num_block_copies == 1
    manager.check_integrity()


@pytest.mark.parametrize("is_started", [False, True])
def test_what_ends_before_its_copy_was_made_leaves_nothing_in_the_cache(is_started: bool) -> None:
    """The target of a copy that may not have been made does not become a source; the real source stays."""
    manager = BlockManager(8, 4)
    leader, follower = make_sequence(1, 1, 2, 3), make_sequence(2, 1, 2, 3)
    opened(manager, leader)
    compute(manager, leader)
    fork = manager.find_fork(leader, follower)
    assert fork is not None
    follower.block_table, follower.num_computed = manager.open(follower, fork), fork.num_tokens
    if is_started:
        manager.start_copy(follower.id)
    manager.free(follower)
    manager.check_integrity()
    assert manager.stats().num_cached_blocks == 0
    manager.finish_copies()
    manager.free(leader)
    manager.check_integrity()
    assert opened(manager, make_sequence(3, 1, 2, 3)).num_tokens == 2


@pytest.mark.parametrize(("length", "num_shared", "copies"), [(8, 1, True), (9, 2, False), (10, 2, True)])
@pytest.mark.parametrize("salt", ["", None])
def test_a_fork_shares_all_but_the_last_token(length: int, num_shared: int, copies: bool, salt: str | None) -> None:
    """Whole blocks are shared and the rest is copied, also where the prefix cache is not used."""
    manager = BlockManager(8, 4)
    leader, follower = (make_sequence(n, *range(1, length + 1), salt=salt) for n in (1, 2))
    opened(manager, leader)
    compute(manager, leader)
    fork = manager.find_fork(leader, follower)
    assert fork is not None
    assert (len(fork.block_ids), fork.copy_source is not None, fork.num_tokens) == (num_shared, copies, length - 1)
    table = manager.open(follower, fork)
    manager.free(leader)
    manager.check_integrity()
    assert len(table) == manager.blocks_for(length)
    assert manager.start_copy(follower.id) == (BlockCopy(fork.copy_source, table[num_shared]) if copies else None)  # type: ignore[arg-type]


def test_there_is_no_fork_without_a_block_for_it() -> None:
    """In a full pool a choice cannot go on from another's prompt."""
    manager = BlockManager(1, 4)
    leader = make_sequence(1, 1, 2, 3)
    opened(manager, leader)
    compute(manager, leader)
    assert manager.find_fork(leader, make_sequence(2, 1, 2, 3)) is None


def test_a_sequence_that_holds_blocks_cannot_be_given_others() -> None:
    """Opening twice is an error and changes no count."""
    manager = BlockManager(4, 4)
    sequence = make_sequence(1, length=3)
    opened(manager, sequence)
    with pytest.raises(SequenceExistsError, match="sequence 1/0 already has a block table"):
        manager.open(sequence, NO_REUSE)
    manager.check_integrity()


@pytest.mark.parametrize(
    "operation",
    [
        lambda manager, unknown: manager.free(unknown),
        lambda manager, unknown: manager.block_table(unknown.id),
        lambda manager, unknown: manager.grow(unknown.id),
        lambda manager, unknown: manager.find_fork(unknown, unknown),
    ],
    ids=["free", "block_table", "grow", "find_fork"],
)
def test_an_unknown_sequence_has_its_own_error(operation: Callable[[BlockManager, Sequence], object]) -> None:
    """A sequence without blocks raises SequenceNotFoundError, not the error of an unknown block (KV-11)."""
    manager = BlockManager(4, 4)
    opened(manager, make_sequence(1, length=3))
    with pytest.raises(SequenceNotFoundError, match="sequence 2/0 has no block table"):
        operation(manager, make_sequence(2, length=3))
    manager.check_integrity()


def test_freeing_twice_is_an_error() -> None:
    """The second free of a sequence fails and leaves all counts as they were (KV-3)."""
    manager = BlockManager(4, 4)
    sequence = make_sequence(1, length=5)
    opened(manager, sequence)
    manager.free(sequence)
    with pytest.raises(SequenceNotFoundError):
        manager.free(sequence)
    assert manager.num_available_blocks == 4
    manager.check_integrity()


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (-1, 4), (4, 0), (4, -2)])
def test_a_pool_without_room_is_refused(num_blocks: int, block_size: int) -> None:
    """A cache of no blocks, or of empty blocks, is an error of configuration."""
    with pytest.raises(ConfigError, match="at least 1"):
        BlockManager(num_blocks, block_size)


def test_check_integrity_states_a_block_held_twice() -> None:
    """A table that holds a block twice is found and named (KV-12)."""
    manager = BlockManager(4, 4)
    sequence = make_sequence(1, length=8)
    opened(manager, sequence)
    sequence.block_table[0] = sequence.block_table[1]
    with pytest.raises(IntegrityError, match="the block table of sequence 1/0 holds a block twice"):
        manager.check_integrity()


def test_check_integrity_states_a_count_that_does_not_match_its_holders() -> None:
    """A block that a table holds without being counted is found and named (KV-4, KV-12)."""
    manager = BlockManager(4, 4)
    sequence = make_sequence(1, length=4)
    opened(manager, sequence)
    free_id = (sequence.block_table[0] + 1) % 4
    sequence.block_table.append(free_id)
    with pytest.raises(IntegrityError, match=f"block {free_id} has reference count 0, and 1 tables hold it"):
        manager.check_integrity()


def test_check_integrity_states_a_block_outside_the_pool() -> None:
    """A table with an id outside the pool is found and named (KV-6, KV-12)."""
    manager = BlockManager(4, 4)
    sequence = make_sequence(1, length=4)
    opened(manager, sequence)
    sequence.block_table.append(9)
    with pytest.raises(BlockNotFoundError, match="block 9"):
        manager.check_integrity()


def test_check_integrity_states_a_table_that_left_its_prefix() -> None:
    """A table that does not begin with the blocks of its cached prefix is found and named (KV-12)."""
    manager = BlockManager(4, 2)
    sequence = make_sequence(1, 1, 2, 3, 4)
    opened(manager, sequence)
    compute(manager, sequence)
    sequence.block_table.reverse()
    with pytest.raises(IntegrityError, match="the block table of sequence 1/0 does not begin with"):
        manager.check_integrity()


def test_random_operations_keep_every_invariant() -> None:
    """After each of 3,000 random operations the invariants hold, and the same seed gives the same tables (KV-4)."""

    def tables(seed: int) -> list[list[int]]:
        rng, manager = random.Random(seed), BlockManager(12, 3)
        live: list[Sequence] = []
        for number in range(3000):
            if live and rng.random() < 0.5:
                manager.free(live.pop(rng.randrange(len(live))))
            else:
                tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 14))]
                sequence = make_sequence(number, *tokens, salt=rng.choice(["", "other", None]))
                if manager.find_room(sequence) is not None:
                    opened(manager, sequence)
                    live.append(sequence)
                    if rng.random() < 0.8:
                        compute(manager, sequence)
            manager.check_integrity()
        assert manager.stats().prefix_hit_tokens > 1000
        return [list(manager.block_table(sequence.id)) for sequence in live]

    assert tables(1) == tables(1)


def test_cycles_of_opening_and_freeing_are_flat_in_memory() -> None:
    """Five thousand cycles leave no more memory behind than a few hundred, with the cache full (KV-2)."""
    manager = BlockManager(64, 4)

    def cycle(first: int, count: int) -> int:
        for number in range(first, first + count):
            sequence = make_sequence(number, length=40)
            opened(manager, sequence)
            sequence.num_computed = sequence.num_tokens
            manager.commit(sequence)
            manager.free(sequence)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = cycle(0, 300)
        assert cycle(1000, 5000) - before < 8192
    finally:
        tracemalloc.stop()
