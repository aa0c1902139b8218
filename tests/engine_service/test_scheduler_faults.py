"""Faults put in on purpose: the random traffic of test_scheduler_properties must notice each of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine_service.scheduling.block_manager import BlockManager, Reuse
from engine_service.scheduling.block_pool import BlockPool
from engine_service.scheduling.followers import Followers
from engine_service.scheduling.messages import BlockCopy
from engine_service.scheduling.prefix_cache import PrefixCache, PrefixMatch
from engine_service.scheduling.sequence import Sequence, SequenceId
from service_common.errors import InternalError
from tests.engine_service.test_scheduler_properties import drive

Fault = Callable[[pytest.MonkeyPatch], None]


def skipped_copy(patch: pytest.MonkeyPatch) -> None:
    """Copies on write are counted, but no step holds them."""
    start_copy = BlockManager.start_copy

    def start_no_copy(self: BlockManager, sequence_id: SequenceId) -> None:
        start_copy(self, sequence_id)

    patch.setattr(BlockManager, "start_copy", start_no_copy)


def swapped_copy(patch: pytest.MonkeyPatch) -> None:
    """Copies go from the target to the source."""
    start_copy = BlockManager.start_copy

    def start_swapped(self: BlockManager, sequence_id: SequenceId) -> BlockCopy | None:
        copy = start_copy(self, sequence_id)
        return None if copy is None else BlockCopy(copy.target, copy.source)

    patch.setattr(BlockManager, "start_copy", start_swapped)


def shared_instead_of_copied(patch: pytest.MonkeyPatch) -> None:
    """The block in which a prefix ends is shared and written on."""
    find_room = BlockManager.find_room

    def find_shared(self: BlockManager, *arguments: object, **options: object) -> Reuse | None:
        reuse = find_room(self, *arguments, **options)  # type: ignore[arg-type]
        if reuse is None or reuse.copy_source is None:
            return reuse
        return reuse._replace(block_ids=[*reuse.block_ids, reuse.copy_source], copy_source=None)

    patch.setattr(BlockManager, "find_room", find_shared)


def wrong_parent(patch: pytest.MonkeyPatch) -> None:
    """A block is found by its own tokens, whatever comes before it."""
    find = PrefixCache.find

    def find_anywhere(self: PrefixCache, salt: str, token_ids: tuple[int, ...]) -> PrefixMatch:
        match = find(self, salt, token_ids)
        rest = token_ids[len(match.block_ids) * self._block_size :][: self._block_size]
        same = (node for node in self._by_block.values() if node.token_ids == rest and len(rest) == self._block_size)
        return match if (node := next(same, None)) is None else match._replace(partial=node, num_partial=len(rest))

    patch.setattr(PrefixCache, "find", find_anywhere)


def one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    """A copied block is taken to hold one token more than it has in common."""
    find = PrefixCache.find

    def find_more(self: PrefixCache, salt: str, token_ids: tuple[int, ...]) -> PrefixMatch:
        match = find(self, salt, token_ids)
        found = len(match.block_ids) * self._block_size + match.num_partial
        return (
            match._replace(num_partial=match.num_partial + 1) if match.num_partial and found < len(token_ids) else match
        )

    patch.setattr(PrefixCache, "find", find_more)


def uncounted_source(patch: pytest.MonkeyPatch) -> None:
    """A block that is to be copied may be given away and written before."""
    open_table = BlockManager.open

    def open_uncounted(self: BlockManager, sequence: Sequence, reuse: Reuse) -> object:
        table = open_table(self, sequence, reuse)
        if reuse.copy_source is not None:
            self._pool.release(reuse.copy_source)
        return table

    patch.setattr(BlockManager, "open", open_uncounted)


def cached_too_early(patch: pytest.MonkeyPatch) -> None:
    """A block enters the cache before its last token is computed."""
    commit = BlockManager.commit

    def commit_early(self: BlockManager, sequence: Sequence) -> None:
        sequence.num_computed += self.block_size - 1
        commit(self, sequence)
        sequence.num_computed -= self.block_size - 1

    patch.setattr(BlockManager, "commit", commit_early)


def newest_evicted_first(patch: pytest.MonkeyPatch) -> None:
    """Blocks are evicted before those that go on from them."""

    def evict_newest(self: BlockPool) -> None:
        block_id, _ = self._kept_ids.popitem(last=True)
        self._is_marked[block_id] = False
        self._free_ids.append(block_id)
        self._on_evict(block_id)

    patch.setattr(BlockPool, "_evict", evict_newest)


def evicted_but_not_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The cache still finds a block that was given away."""
    patch.setattr(PrefixCache, "forget", lambda self, block_id: None)


def forgotten_followers(patch: pytest.MonkeyPatch) -> None:
    """Choices that waited for another's prompt are lost."""
    release = Followers.release
    patch.setattr(Followers, "release", lambda self, leader: release(self, leader) and [])


FAULTS: list[Fault] = [
    skipped_copy,
    swapped_copy,
    shared_instead_of_copied,
    wrong_parent,
    one_token_too_many,
    uncounted_source,
    cached_too_early,
    newest_evicted_first,
    evicted_but_not_forgotten,
    forgotten_followers,
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_fault_is_noticed(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the traffic that passes without the fault, it breaks an invariant or a token."""
    fault(monkeypatch)
    with pytest.raises((AssertionError, InternalError, IndexError)):
        drive_many()


def drive_many() -> None:
    """The traffic of one part of the property test."""
    for seed in range(50):
        drive(seed, 500)
