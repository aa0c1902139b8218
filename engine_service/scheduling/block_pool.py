"""Which KV blocks are in use, which are free, and which of the unused ones hold something worth keeping."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from service_common.errors import ConfigError, InternalError


class BlockNotFoundError(InternalError):
    """A block id outside the pool."""

    def __init__(self, block_id: int, num_blocks: int) -> None:
        super().__init__(f"block {block_id} is not in the pool of {num_blocks} blocks", reason="BLOCK_NOT_FOUND")


class BlockNotAllocatedError(InternalError):
    """A block without references was to be released: a double release, or a stale table."""

    def __init__(self, block_id: int, operation: str) -> None:
        super().__init__(f"block {block_id} is free and cannot be {operation}", reason="BLOCK_NOT_ALLOCATED")


class OutOfBlocksError(InternalError):
    """More blocks were taken than are free: nobody asked before."""

    def __init__(self, wanted: int, num_free: int) -> None:
        super().__init__(f"{wanted} blocks are wanted and {num_free} are free", reason="OUT_OF_BLOCKS")


class IntegrityError(InternalError):
    """An invariant of the scheduler or its blocks is broken; the message states it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="INTEGRITY")


class BlockPool:
    """Block ids 0 … num_blocks−1 with a reference count each; every operation is O(1) a block.

    A block without references is free, or, once `keep` has marked it, kept: it is given away only when no free block is
    left, the one that was released longest ago first, after `on_evict` was told. `retain` brings a kept block back.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None]) -> None:
        if num_blocks < 1:
            raise ConfigError(f"the KV cache has {num_blocks} blocks; it needs at least 1")
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self._on_evict = on_evict
        self._free_ids = list(range(num_blocks - 1, -1, -1))
        self._kept_ids: OrderedDict[int, None] = OrderedDict()  # without references, least recently used first
        self._is_marked = [False] * num_blocks
        self._reference_counts = [0] * num_blocks

    @property
    def num_available(self) -> int:
        """Blocks without references: what `take` can give."""
        return len(self._free_ids) + len(self._kept_ids)

    @property
    def num_kept(self) -> int:
        """Those of the available blocks that are kept for what they hold."""
        return len(self._kept_ids)

    def take(self, count: int) -> list[int]:
        """Takes `count` blocks, with one reference each. OutOfBlocksError, and no change, where fewer are available."""
        if not 0 <= count <= self.num_available:
            raise OutOfBlocksError(count, self.num_available)
        while len(self._free_ids) < count:
            self._evict()
        start = len(self._free_ids) - count
        block_ids = self._free_ids[start:]
        del self._free_ids[start:]
        for block_id in block_ids:
            self._reference_counts[block_id] = 1
        return block_ids

    def keep(self, block_id: int) -> None:
        """Marks a block in use, to be kept when its last reference goes."""
        if self.reference_count(block_id) == 0:
            raise BlockNotAllocatedError(block_id, "kept")
        self._is_marked[block_id] = True

    def retain(self, block_id: int) -> None:
        """Adds a reference to a block that is in use or kept."""
        count = self.reference_count(block_id)
        if count == 0:
            if block_id not in self._kept_ids:
                raise BlockNotAllocatedError(block_id, "shared")
            del self._kept_ids[block_id]
        self._reference_counts[block_id] = count + 1

    def release(self, block_id: int) -> None:
        """Drops a reference; the last one makes the block available."""
        count = self.reference_count(block_id)
        if count == 0:
            raise BlockNotAllocatedError(block_id, "released")
        self._reference_counts[block_id] = count - 1
        if count > 1:
            return
        if self._is_marked[block_id]:
            self._kept_ids[block_id] = None
        else:
            self._free_ids.append(block_id)

    def reference_count(self, block_id: int) -> int:
        """References to a block. BlockNotFoundError for an id outside the pool, as in every operation."""
        if not 0 <= block_id < self.num_blocks:
            raise BlockNotFoundError(block_id, self.num_blocks)
        return self._reference_counts[block_id]

    def kept_ids(self) -> list[int]:
        """The kept blocks, in the order in which they will be given away; O(blocks)."""
        return list(self._kept_ids)

    def check_integrity(self, references: Counter[int], marked_ids: frozenset[int]) -> None:
        """Raises IntegrityError unless `references` and marks are exactly those there are; O(num_blocks)."""
        listed = Counter(self._free_ids)
        for block_id in references.keys() | listed.keys() | self._kept_ids.keys() | marked_ids:
            self.reference_count(block_id)
        for block_id, count in enumerate(self._reference_counts):
            if count != references[block_id]:
                message = f"block {block_id} has reference count {count}, and {references[block_id]} tables hold it"
                raise IntegrityError(message)
            is_marked = self._is_marked[block_id]
            if is_marked != (block_id in marked_ids):
                raise IntegrityError(f"block {block_id} is {'' if is_marked else 'not '}kept for the prefix cache")
            if (block_id in self._kept_ids) != (is_marked and count == 0):
                raise IntegrityError(f"block {block_id} with reference count {count} is wrongly listed as kept")
            if listed[block_id] != (count == 0 and not is_marked):
                message = f"block {block_id} with reference count {count} is {listed[block_id]} times in the free list"
                raise IntegrityError(message)

    def _evict(self) -> None:
        block_id, _ = self._kept_ids.popitem(last=False)
        self._is_marked[block_id] = False
        self._free_ids.append(block_id)
        self.num_evictions += 1
        self._on_evict(block_id)
