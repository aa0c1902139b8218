"""The KV cache's blocks: which sequence holds which, and which of them others may reuse.

Invariants, stated by `check_integrity` when broken:
1. every block is in use, kept for the prefix cache or free: exactly one of these, and none is lost;
2. a block's reference count is the number of block tables that hold it, and of copies yet to be made from it;
3. no table holds a block twice;
4. a table begins with the blocks of the prefix that its sequence has in the cache, so whoever uses a cached block also
   uses those that it goes on from, and of two unused ones the latter is evicted last.

A cached block is never written again: a sequence that goes on from the middle of one gets a copy.

Only the engine thread calls in here: single ownership stands in for locks.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from engine_service.scheduling.block_pool import BlockPool, IntegrityError
from engine_service.scheduling.messages import BlockCopy
from engine_service.scheduling.prefix_cache import CachedBlock, PrefixCache, PrefixNode
from engine_service.scheduling.sequence import Sequence, SequenceId
from engine_service.scheduling.stats import BlockStats
from service_common.errors import ConfigError, InternalError


class SequenceNotFoundError(InternalError):
    """A sequence that holds no blocks."""

    def __init__(self, sequence_id: SequenceId) -> None:
        super().__init__(f"sequence {sequence_id} has no block table", reason="SEQUENCE_NOT_FOUND")


class SequenceExistsError(InternalError):
    """A sequence that already holds blocks was to receive others."""

    def __init__(self, sequence_id: SequenceId) -> None:
        super().__init__(f"sequence {sequence_id} already has a block table", reason="SEQUENCE_EXISTS")


class Reuse(NamedTuple):
    """K and V that a sequence does not have to compute: those of its first `num_tokens` tokens."""

    node: PrefixNode | None  # where the whole blocks end in the prefix cache; None: the sequence does not use it
    block_ids: list[int]  # whole blocks, to be shared
    copy_source: int | None  # a block to be copied, for the tokens behind them
    num_tokens: int


class BlockManager:
    """The pool, the prefix cache, and one block table per sequence that holds blocks.

    Position p of a sequence is at offset p mod block_size of block `block_table[p // block_size]`.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`block_size` is in tokens. ConfigError where either number is below 1."""
        if block_size < 1:
            raise ConfigError(f"a KV block holds {block_size} tokens; it must hold at least 1")
        self.block_size = block_size
        self._cache = PrefixCache(block_size)
        self._pool = BlockPool(num_blocks, on_evict=self._cache.forget)
        self._tables: dict[SequenceId, array[int]] = {}
        self._tips: dict[SequenceId, PrefixNode] = {}  # how far the sequences that use the cache are in it
        self._copies: dict[SequenceId, BlockCopy] = {}  # not known to be done; the source is referenced
        self._copies_in_flight: list[SequenceId] = []
        self._num_queries = self._num_query_tokens = self._num_hit_tokens = self._num_copies = 0

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self._pool.num_blocks

    @property
    def num_available_blocks(self) -> int:
        """Blocks that no sequence uses, the cached ones included."""
        return self._pool.num_available

    @property
    def num_used_blocks(self) -> int:
        """Blocks that sequences use."""
        return self._pool.num_blocks - self._pool.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def find_room(self, sequence: Sequence, without: Iterable[SequenceId] = ()) -> Reuse | None:
        """What the sequence can reuse of the prefix cache, if there is then room for all its known tokens, else None.

        At least one token is left to compute. Room is counted as if the sequences `without` had been freed.
        """
        freed = Counter(chain.from_iterable(map(self.block_table, without)))
        reuse = self._find_reuse(sequence)
        if self._fits(sequence, reuse, freed):
            return reuse
        whole = reuse._replace(copy_source=None, num_tokens=len(reuse.block_ids) * self.block_size)
        return whole if self._fits(sequence, whole, freed) else None

    def find_fork(self, parent: Sequence, child: Sequence) -> Reuse | None:
        """All known tokens of `child` but the last, from the blocks of `parent`, which has computed the same tokens.

        None where there is no room. SequenceNotFoundError where the parent holds no blocks.
        """
        num_tokens = child.num_tokens - 1
        num_whole, num_partial = divmod(num_tokens, self.block_size)
        table = self.block_table(parent.id)
        node = self._tips.get(parent.id)
        while isinstance(node, CachedBlock) and node.depth > num_whole:
            node = node.parent
        reuse = Reuse(node, list(table[:num_whole]), table[num_whole] if num_partial else None, num_tokens)
        return reuse if self._fits(child, reuse, Counter()) else None

    def open(self, sequence: Sequence, reuse: Reuse) -> array[int]:
        """Gives the sequence a table with room for all its known tokens; what it reuses comes first.

        The table stays the manager's: others read it while it grows. SequenceExistsError where the sequence has one.
        `reuse` must be what `find_room` or `find_fork` has just given.
        """
        if sequence.id in self._tables:
            raise SequenceExistsError(sequence.id)
        for block_id in reuse.block_ids:
            self._pool.retain(block_id)
        if reuse.copy_source is not None:
            self._pool.retain(reuse.copy_source)
        new_ids = self._pool.take(self.blocks_for(sequence.num_tokens) - len(reuse.block_ids))
        table = self._tables[sequence.id] = array("i", reuse.block_ids + new_ids)
        if reuse.copy_source is not None:
            self._copies[sequence.id] = BlockCopy(reuse.copy_source, new_ids[0])
        if reuse.node is not None:
            self._tips[sequence.id] = reuse.node
            self._num_queries += 1
            self._num_query_tokens += sequence.num_tokens
            self._num_hit_tokens += reuse.num_tokens
        return table

    def can_grow(self) -> bool:
        """Whether `grow` would find a block."""
        return self._pool.num_available > 0

    def grow(self, sequence_id: SequenceId) -> None:
        """Appends a block to the sequence's table. OutOfBlocksError, and no change, where there is none."""
        self.block_table(sequence_id).extend(self._pool.take(1))

    def start_copy(self, sequence_id: SequenceId) -> BlockCopy | None:
        """The copy that has to be made before the sequence is computed further, if one has; `finish_copies` follows."""
        copy = self._copies.get(sequence_id)
        if copy is not None:
            self._copies_in_flight.append(sequence_id)
            self._num_copies += 1
        return copy

    def finish_copies(self) -> None:
        """The copies that were started have been made, or those that wanted them are gone."""
        for sequence_id in self._copies_in_flight:
            self._drop_copy(sequence_id)
        self._copies_in_flight.clear()

    def commit(self, sequence: Sequence) -> None:
        """Puts the sequence's computed whole blocks into the prefix cache, if it uses that.

        Where the same tokens are cached already the table gets that block instead, which holds the same bits.
        """
        node = self._tips.get(sequence.id)
        if node is None:
            return
        table, block_size = self._tables[sequence.id], self.block_size
        for index in range(node.depth, sequence.num_computed // block_size):
            token_ids = sequence.token_ids(index * block_size, (index + 1) * block_size)
            node = cached = self._cache.insert(node, token_ids, table[index])
            if cached.block_id == table[index]:
                self._pool.keep(cached.block_id)
            else:
                self._pool.retain(cached.block_id)
                self._pool.release(table[index])
                table[index] = cached.block_id
        self._tips[sequence.id] = node

    def free(self, sequence: Sequence) -> None:
        """Drops the sequence's table and its references; what it has computed stays cached while nobody needs the room.

        SequenceNotFoundError where it has no table: a double release.
        """
        table = self.block_table(sequence.id)
        node = self._tips.pop(sequence.id, None)
        if not self._drop_copy(sequence.id) and node is not None:
            self._commit_tail(sequence, node)
        for block_id in reversed(table):
            self._pool.release(block_id)
        del self._tables[sequence.id]

    def block_table(self, sequence_id: SequenceId) -> array[int]:
        """The sequence's own table, not a copy. SequenceNotFoundError where it holds no blocks."""
        try:
            return self._tables[sequence_id]
        except KeyError:
            raise SequenceNotFoundError(sequence_id) from None

    def sequence_ids(self) -> frozenset[SequenceId]:
        """Sequences that hold blocks; O(sequences)."""
        return frozenset(self._tables)

    def stats(self) -> BlockStats:
        """What the blocks are used for, and what the cache has done."""
        pool = self._pool
        return BlockStats(
            num_blocks=pool.num_blocks,
            num_used_blocks=self.num_used_blocks,
            num_cached_blocks=pool.num_kept,
            num_free_blocks=pool.num_available - pool.num_kept,
            block_size=self.block_size,
            num_prefix_queries=self._num_queries,
            prefix_query_tokens=self._num_query_tokens,
            prefix_hit_tokens=self._num_hit_tokens,
            num_evictions=pool.num_evictions,
            num_block_copies=self._num_copies,
        )

    def check_integrity(self) -> None:
        """Raises IntegrityError, or BlockNotFoundError, with the invariant that is broken; O(blocks)."""
        for sequence_id, table in self._tables.items():
            if len(set(table)) != len(table):
                raise IntegrityError(f"the block table of sequence {sequence_id} holds a block twice: {list(table)}")
        sources = (copy.source for copy in self._copies.values())
        self._pool.check_integrity(Counter(chain(*self._tables.values(), sources)), self._cache.block_ids())
        self._cache.check_integrity(self._pool.kept_ids())
        for sequence_id, node in self._tips.items():
            path = node.path()
            if path != list(self._tables[sequence_id][: node.depth]):
                raise IntegrityError(f"the block table of sequence {sequence_id} does not begin with {path}")
        if not self._tips.keys() | self._copies.keys() <= self._tables.keys():
            raise IntegrityError("a sequence without a block table has a place in the prefix cache, or a copy to come")

    def _find_reuse(self, sequence: Sequence) -> Reuse:
        salt = sequence.cache_salt
        if salt is None:
            return Reuse(None, [], None, 0)
        match = self._cache.find(salt, sequence.token_ids(0, sequence.num_tokens - 1))
        num_tokens = len(match.block_ids) * self.block_size + match.num_partial
        source = None if match.partial is None else match.partial.block_id
        return Reuse(match.node, match.block_ids, source, num_tokens)

    def _fits(self, sequence: Sequence, reuse: Reuse, freed: Counter[int]) -> bool:
        """Whether the blocks of `reuse` and the new ones are there, once the references `freed` are gone."""
        count = self._pool.reference_count
        num_available = self._pool.num_available + sum(count(block_id) == num for block_id, num in freed.items())
        num_shared = sum(count(block_id) > freed[block_id] for block_id in reuse.block_ids)
        source = reuse.copy_source
        num_wanted = self.blocks_for(sequence.num_tokens) - num_shared
        return num_wanted + (source is not None and count(source) <= freed[source]) <= num_available

    def _commit_tail(self, sequence: Sequence, node: PrefixNode) -> None:
        """Caches the last block of a sequence, which is not full, unless a cached block begins with the same tokens."""
        tail_ids = sequence.token_ids(node.depth * self.block_size, sequence.num_computed)
        if node.most_similar(tail_ids)[1] < len(tail_ids):
            block_id = self._tables[sequence.id][node.depth]
            self._cache.insert(node, tail_ids, block_id)
            self._pool.keep(block_id)

    def _drop_copy(self, sequence_id: SequenceId) -> bool:
        """Forgets the copy that the sequence waits for; whether there is one."""
        copy = self._copies.pop(sequence_id, None)
        if copy is not None:
            self._pool.release(copy.source)
        return copy is not None
