"""The KV cache's blocks: which are free, and which sequence holds which.

Invariants, stated by `check_integrity` when broken:
1. every block is free or referenced, never both, and none is lost;
2. a block's reference count is the number of block tables that hold it;
3. no table holds a block twice.

Only the engine thread calls in here: single ownership stands in for locks.
"""

from __future__ import annotations

from array import array
from collections import Counter

from engine_service.scheduling.sequence import SequenceId
from service_common.errors import ConfigError, InternalError


class BlockNotFoundError(InternalError):
    """A block id outside the pool."""

    def __init__(self, block_id: int, num_blocks: int) -> None:
        super().__init__(f"block {block_id} is not in the pool of {num_blocks} blocks", reason="BLOCK_NOT_FOUND")


class BlockNotAllocatedError(InternalError):
    """A free block was to be shared or released: a double release, or a stale table."""

    def __init__(self, block_id: int, operation: str) -> None:
        super().__init__(f"block {block_id} is free and cannot be {operation}", reason="BLOCK_NOT_ALLOCATED")


class SequenceNotFoundError(InternalError):
    """A sequence that holds no blocks."""

    def __init__(self, sequence_id: SequenceId) -> None:
        super().__init__(f"sequence {sequence_id} has no block table", reason="SEQUENCE_NOT_FOUND")


class SequenceExistsError(InternalError):
    """A sequence that already holds blocks was to receive another's."""

    def __init__(self, sequence_id: SequenceId) -> None:
        super().__init__(f"sequence {sequence_id} already has a block table", reason="SEQUENCE_EXISTS")


class OutOfBlocksError(InternalError):
    """More blocks were taken than are free: `can_allocate` was not asked."""

    def __init__(self, wanted: int, num_free: int) -> None:
        super().__init__(f"{wanted} blocks are wanted and {num_free} are free", reason="OUT_OF_BLOCKS")


class IntegrityError(InternalError):
    """An invariant of the scheduler or its blocks is broken; the message states it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="INTEGRITY")


class BlockPool:
    """Block ids 0 … num_blocks−1 with a reference count each; every operation is O(1) a block."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ConfigError(f"the KV cache has {num_blocks} blocks; it needs at least 1")
        self.num_blocks = num_blocks
        self._free_ids = list(range(num_blocks - 1, -1, -1))
        self._reference_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody references."""
        return len(self._free_ids)

    def take(self, count: int) -> list[int]:
        """Takes `count` free blocks, with one reference each. OutOfBlocksError, and no change, where fewer are free."""
        start = len(self._free_ids) - count
        if count < 0 or start < 0:
            raise OutOfBlocksError(count, len(self._free_ids))
        block_ids = self._free_ids[start:]
        del self._free_ids[start:]
        for block_id in block_ids:
            self._reference_counts[block_id] = 1
        return block_ids

    def retain(self, block_id: int) -> None:
        """Adds a reference to a block in use."""
        if self.reference_count(block_id) == 0:
            raise BlockNotAllocatedError(block_id, "shared")
        self._reference_counts[block_id] += 1

    def release(self, block_id: int) -> None:
        """Drops a reference; the last one frees the block."""
        count = self.reference_count(block_id)
        if count == 0:
            raise BlockNotAllocatedError(block_id, "released")
        self._reference_counts[block_id] = count - 1
        if count == 1:
            self._free_ids.append(block_id)

    def reference_count(self, block_id: int) -> int:
        """References to a block. BlockNotFoundError for an id outside the pool, as in `retain` and `release`."""
        if not 0 <= block_id < self.num_blocks:
            raise BlockNotFoundError(block_id, self.num_blocks)
        return self._reference_counts[block_id]

    def check_integrity(self, references: Counter[int]) -> None:
        """Raises IntegrityError unless `references` are exactly the references there are; O(num_blocks)."""
        listed = Counter(self._free_ids)
        for block_id in references.keys() | listed.keys():
            self.reference_count(block_id)
        for block_id, count in enumerate(self._reference_counts):
            if count != references[block_id]:
                message = f"block {block_id} has reference count {count}, and {references[block_id]} tables hold it"
                raise IntegrityError(message)
            if listed[block_id] != (count == 0):
                message = f"block {block_id} with reference count {count} is {listed[block_id]} times in the free list"
                raise IntegrityError(message)


class BlockManager:
    """The pool, and one block table per sequence that holds blocks.

    Position p of a sequence is at offset p mod block_size of block `block_table[p // block_size]`.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`block_size` is in tokens. ConfigError where either number is below 1."""
        if block_size < 1:
            raise ConfigError(f"a KV block holds {block_size} tokens; it must hold at least 1")
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._tables: dict[SequenceId, array[int]] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no table holds."""
        return self._pool.num_free

    @property
    def num_used_blocks(self) -> int:
        """Blocks that at least one table holds."""
        return self._pool.num_blocks - self._pool.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, num_blocks: int) -> bool:
        """Whether `allocate` would find so many free blocks."""
        return num_blocks <= self._pool.num_free

    def allocate(self, sequence_id: SequenceId, num_blocks: int) -> array[int]:
        """Appends free blocks to the sequence's table, which the first call makes, and returns that very table.

        It stays the manager's: others read it while it grows. OutOfBlocksError, and no change, where too few are free.
        """
        block_ids = self._pool.take(num_blocks)
        table = self._tables.setdefault(sequence_id, array("i"))
        table.extend(block_ids)
        return table

    def fork(self, parent_id: SequenceId, child_id: SequenceId) -> array[int]:
        """Gives the child a table of the parent's blocks, which both then hold; no K or V is copied.

        SequenceNotFoundError where the parent has no table, SequenceExistsError where the child has one.
        """
        if child_id in self._tables:
            raise SequenceExistsError(child_id)
        table = self.block_table(parent_id)[:]
        for block_id in table:
            self._pool.retain(block_id)
        self._tables[child_id] = table
        return table

    def free(self, sequence_id: SequenceId) -> None:
        """Drops the sequence's table and its references. SequenceNotFoundError where it has none: a double release."""
        for block_id in reversed(self.block_table(sequence_id)):
            self._pool.release(block_id)
        del self._tables[sequence_id]

    def block_table(self, sequence_id: SequenceId) -> array[int]:
        """The sequence's own table, not a copy. SequenceNotFoundError where it holds no blocks."""
        try:
            return self._tables[sequence_id]
        except KeyError:
            raise SequenceNotFoundError(sequence_id) from None

    def sequence_ids(self) -> frozenset[SequenceId]:
        """Sequences that hold blocks; O(sequences)."""
        return frozenset(self._tables)

    def check_integrity(self) -> None:
        """Raises IntegrityError, or BlockNotFoundError, with the invariant that is broken; O(blocks)."""
        for sequence_id, table in self._tables.items():
            if len(set(table)) != len(table):
                raise IntegrityError(f"the block table of sequence {sequence_id} holds a block twice: {list(table)}")
        self._pool.check_integrity(Counter(block_id for table in self._tables.values() for block_id in table))
