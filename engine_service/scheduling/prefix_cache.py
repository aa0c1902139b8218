"""Which tokens' K and V the cached blocks hold: a tree of blocks for each salt.

A block's place in the tree is its prefix: a path from the root spells the tokens of all blocks on it. So K and V, which
depend on all tokens before, are the same for whoever has the same tokens up to there. Children are sorted by their
tokens, so a binary search finds the one that holds the next tokens, by comparing them. There is no hash: a client that
knows Python's could choose tokens that collide.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from itertools import pairwise
from math import inf
from operator import attrgetter
from typing import NamedTuple
from weakref import WeakValueDictionary

from engine_service.scheduling.block_pool import IntegrityError

TokenIds = tuple[int, ...]

_by_token_ids = attrgetter("token_ids")


class PrefixNode:
    """A prefix of whole blocks; the root of a salt is the empty one."""

    __slots__ = ("__weakref__", "children", "depth")

    def __init__(self, depth: int) -> None:
        self.depth = depth  # blocks from the root to here
        self.children: list[CachedBlock] = []  # sorted by their tokens: the most similar ones are neighbours

    def add(self, child: CachedBlock) -> None:
        """Puts in a child whose tokens no other has."""
        insort(self.children, child, key=_by_token_ids)

    def discard(self, child: CachedBlock) -> None:
        """Takes a child out."""
        del self.children[self._index(child.token_ids)]

    def child(self, token_ids: TokenIds) -> CachedBlock | None:
        """The child with exactly these tokens."""
        index = self._index(token_ids)
        found = self.children[index] if index < len(self.children) else None
        return found if found is not None and found.token_ids == token_ids else None

    def path(self) -> list[int]:
        """The ids of the blocks from the root to here."""
        block_ids: list[int] = []
        node: PrefixNode = self
        while isinstance(node, CachedBlock):
            block_ids.append(node.block_id)
            node = node.parent
        return block_ids[::-1]

    def most_similar(self, token_ids: TokenIds) -> tuple[CachedBlock | None, int]:
        """The child that has the longest prefix in common with `token_ids`, and its length; None where it is 0."""
        index = self._index(token_ids)
        best, best_len = None, 0
        for child in self.children[max(0, index - 1) : index + 1]:
            common_len = _common_prefix_len(child.token_ids, token_ids)
            if common_len > best_len:
                best, best_len = child, common_len
        return best, best_len

    def _index(self, token_ids: TokenIds) -> int:
        return bisect_left(self.children, token_ids, key=_by_token_ids)


class CachedBlock(PrefixNode):
    """A block whose first len(token_ids) slots hold the K and V of those tokens, after the prefix of `parent`.

    One that is not full has no children.
    """

    __slots__ = ("block_id", "parent", "token_ids")

    def __init__(self, parent: PrefixNode, token_ids: TokenIds, block_id: int) -> None:
        super().__init__(parent.depth + 1)
        self.parent, self.token_ids, self.block_id = parent, token_ids, block_id


class PrefixMatch(NamedTuple):
    """What the cache holds of some tokens."""

    node: PrefixNode  # the last of the whole blocks, or the root
    block_ids: list[int]  # the whole blocks, from the root
    partial: CachedBlock | None  # a block of which the first `num_partial` tokens go on from there
    num_partial: int


class PrefixCache:
    """The trees. Knows blocks by their ids only; who holds them is the block manager's business."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._roots: WeakValueDictionary[Hashable, PrefixNode] = WeakValueDictionary()  # those with children or users
        self._by_block: dict[int, CachedBlock] = {}

    def __len__(self) -> int:
        return len(self._by_block)

    def root(self, salt: Hashable) -> PrefixNode:
        """The empty prefix of a salt. It is forgotten when neither a block nor the caller refers to it any more."""
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = PrefixNode(0)
        return root

    def find(self, salt: Hashable, token_ids: TokenIds) -> PrefixMatch:
        """The longest cached prefix of `token_ids`; O(len(token_ids) × log(cached blocks))."""
        node = self.root(salt)
        block_ids: list[int] = []
        start = 0
        while len(token_ids) - start >= self._block_size:
            child = node.child(token_ids[start : start + self._block_size])
            if child is None:
                break
            node = child
            block_ids.append(child.block_id)
            start += self._block_size
        return PrefixMatch(node, block_ids, *node.most_similar(token_ids[start : start + self._block_size]))

    def insert(self, parent: PrefixNode, token_ids: TokenIds, block_id: int) -> CachedBlock:
        """Puts a block below `parent`, or gives the one that is there with the same tokens."""
        child = parent.child(token_ids)
        if child is None:
            child = self._by_block[block_id] = CachedBlock(parent, token_ids, block_id)
            parent.add(child)
        return child

    def forget(self, block_id: int) -> None:
        """Takes a block out. IntegrityError where others go on from it."""
        block = self._by_block.pop(block_id)
        if block.children:
            raise IntegrityError(f"block {block_id} leaves the prefix cache before the blocks that go on from it")
        block.parent.discard(block)

    def block_ids(self) -> frozenset[int]:
        """All blocks that are in; O(blocks)."""
        return frozenset(self._by_block)

    def check_integrity(self, unused_ids: list[int]) -> None:
        """Raises IntegrityError unless the trees hold exactly the blocks that are in, each in its place; O(blocks).

        `unused_ids` are the blocks that may be evicted, in that order: a block must come before its parent.
        """
        turn = {block_id: turn for turn, block_id in enumerate(unused_ids)}
        num_reached = 0
        for node, child in self._edges():
            num_reached += 1
            num_tokens, is_leaf = len(child.token_ids), not child.children
            if self._by_block.get(child.block_id) is not child or child.parent is not node:
                raise IntegrityError(f"block {child.block_id} is in the prefix tree, but not at the place it names")
            if not (num_tokens == self._block_size or (is_leaf and 0 < num_tokens < self._block_size)):
                place = "at the end" if is_leaf else "in the middle"
                raise IntegrityError(f"block {child.block_id}, {place} of a prefix, holds {num_tokens} tokens")
            if isinstance(node, CachedBlock) and turn.get(child.block_id, inf) > turn.get(node.block_id, inf):
                raise IntegrityError(f"block {node.block_id} would be evicted before block {child.block_id}, its child")
        if num_reached != len(self._by_block):
            raise IntegrityError(f"{len(self._by_block)} blocks are cached, and {num_reached} can be found")

    def _edges(self) -> Iterator[tuple[PrefixNode, CachedBlock]]:
        nodes: list[PrefixNode] = list(self._roots.values())
        while nodes:
            node = nodes.pop()
            if any(child.token_ids >= following.token_ids for child, following in pairwise(node.children)):
                raise IntegrityError("the children of a prefix are not in the order of their tokens")
            for child in node.children:
                yield node, child
                nodes.append(child)


def _common_prefix_len(a: TokenIds, b: TokenIds) -> int:
    length = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        length += 1
    return length
