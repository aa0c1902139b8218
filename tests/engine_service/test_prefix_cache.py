"""Which blocks hold which tokens' K and V."""

from __future__ import annotations

import gc

import pytest

from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.prefix_cache import PrefixCache, PrefixMatch, PrefixNode

BLOCK_SIZE = 4


def found(match: PrefixMatch) -> tuple[list[int], int | None, int]:
    """A match as whole blocks, the block that goes on, and how far."""
    return match.block_ids, None if match.partial is None else match.partial.block_id, match.num_partial


def filled(*blocks: tuple[tuple[int, ...], int], salt: str = "") -> tuple[PrefixCache, PrefixNode]:
    """A cache with one path of blocks, each (token ids, block id), and the end of the path."""
    cache = PrefixCache(BLOCK_SIZE)
    node = cache.root(salt)
    for token_ids, block_id in blocks:
        node = cache.insert(node, token_ids, block_id)
    return cache, node


def test_an_empty_cache_finds_nothing() -> None:
    """Without blocks there is the root and no more."""
    cache = PrefixCache(BLOCK_SIZE)
    assert found(cache.find("", (1, 2, 3, 4, 5))) == ([], None, 0)


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ((1, 2, 3, 4, 5, 6, 7, 8), ([7, 5], None, 0)),
        ((1, 2, 3, 4, 5, 6, 7, 8, 9, 9), ([7, 5], None, 0)),
        ((1, 2, 3, 4, 5, 6, 7), ([7], 5, 3)),
        ((1, 2, 3, 4, 5, 6, 0, 0, 0), ([7], 5, 2)),
        ((1, 2, 3, 4, 9), ([7], None, 0)),
        ((1, 2, 3), ([], 7, 3)),
        ((2, 2, 3, 4), ([], None, 0)),
        ((), ([], None, 0)),
    ],
)
def test_the_longest_prefix_is_found(token_ids: tuple[int, ...], expected: tuple[list[int], int | None, int]) -> None:
    """Whole blocks as far as all tokens are the same; then the block whose first tokens still are."""
    cache, _ = filled(((1, 2, 3, 4), 7), ((5, 6, 7, 8), 5))
    assert found(cache.find("", token_ids)) == expected


def test_the_same_tokens_after_another_prefix_are_not_found() -> None:
    """A block belongs to its whole prefix: its parent is compared, not only its own tokens (D7)."""
    cache, _ = filled(((1, 2, 3, 4), 7), ((5, 6, 7, 8), 5))
    assert found(cache.find("", (5, 6, 7, 8))) == ([], None, 0)
    assert found(cache.find("", (1, 2, 3, 0, 5, 6, 7, 8))) == ([], 7, 3)


def test_salts_share_nothing() -> None:
    """Under another salt the same tokens are not found (D7)."""
    cache, _ = filled(((1, 2, 3, 4), 7), salt="a")
    assert found(cache.find("a", (1, 2, 3, 4))) == ([7], None, 0)
    assert found(cache.find("b", (1, 2, 3, 4))) == ([], None, 0)
    cache.insert(cache.root("b"), (1, 2, 3, 4), 8)
    assert found(cache.find("b", (1, 2, 3, 4))) == ([8], None, 0)


def test_a_collision_of_hashes_decides_nothing() -> None:
    """Tokens whose hashes are equal are still told apart: the comparison decides (D7)."""
    cache, _ = filled(((-1, 0, 0, 0), 7))
    assert hash((-1, 0, 0, 0)) == hash((-2, 0, 0, 0))
    assert found(cache.find("", (-2, 0, 0, 0))) == ([], None, 0)


def test_of_many_blocks_that_go_on_the_most_similar_is_found() -> None:
    """Among hundreds of continuations the one with the longest common beginning is chosen, wherever it stands."""
    cache, node = filled(((1, 2, 3, 4), 0))
    for number in range(1, 500):
        cache.insert(node, (5, number // 10, number % 10, number), number)
    for number in (1, 250, 499):
        match = cache.find("", (1, 2, 3, 4, 5, number // 10, number % 10, 1000))
        assert match.num_partial == 3
        assert match.partial is not None
        assert match.partial.token_ids[:3] == (5, number // 10, number % 10)


def test_inserting_what_is_there_gives_the_block_that_holds_it() -> None:
    """The same tokens are cached once; the caller is told which block has them."""
    cache, node = filled(((1, 2, 3, 4), 7))
    again = cache.insert(cache.root(""), (1, 2, 3, 4), 9)
    assert again is node
    assert again.block_id == 7
    assert cache.block_ids() == {7}


def test_a_block_leaves_after_those_that_go_on_from_it() -> None:
    """Forgetting a leaf takes it out; forgetting what others go on from is a broken invariant."""
    cache, _ = filled(((1, 2, 3, 4), 7), ((5, 6), 5))
    with pytest.raises(IntegrityError, match="block 7 leaves the prefix cache before"):
        cache.forget(7)
    cache, _ = filled(((1, 2, 3, 4), 7), ((5, 6), 5))
    cache.forget(5)
    assert found(cache.find("", (1, 2, 3, 4, 5, 6))) == ([7], None, 0)
    cache.forget(7)
    assert len(cache) == 0


def test_salts_that_hold_nothing_are_forgotten() -> None:
    """A thousand salts that came and went leave nothing behind (KV-2)."""
    cache = PrefixCache(BLOCK_SIZE)
    for number in range(1000):
        cache.insert(cache.root(str(number)), (1, 2, 3, 4), 0)
        cache.forget(0)
        cache.find(f"read only {number}", (1, 2, 3, 4))
    gc.collect()
    assert len(cache._roots) == 0


def test_check_integrity_states_the_broken_place() -> None:
    """A block out of its place, one that cannot be found and a wrong order of eviction are named (KV-12)."""
    cache, leaf = filled(((1, 2, 3, 4), 7), ((5, 6), 5))
    cache.check_integrity([5, 7])
    with pytest.raises(IntegrityError, match="block 7 would be evicted before block 5, its child"):
        cache.check_integrity([7, 5])
    cache.insert(leaf, (7, 8, 9, 9), 6)
    with pytest.raises(IntegrityError, match="block 5, in the middle of a prefix, holds 2 tokens"):
        cache.check_integrity([])
    cache, _ = filled(((1, 2, 3, 4), 7))
    cache._by_block[3] = cache._by_block[7]
    with pytest.raises(IntegrityError, match="2 blocks are cached, and 1 can be found"):
        cache.check_integrity([])
