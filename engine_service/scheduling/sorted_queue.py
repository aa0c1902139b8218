"""A list that stays sorted by a key of its items."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Generic, TypeVar

from service_common.errors import InternalError

T = TypeVar("T")


class SortedQueue(Generic[T]):
    """Items in ascending order of `key`; no two have equal keys.

    Adding and removing cost O(log n) calls of `key` and one move within the list; the ends are O(1). Nothing is deleted
    lazily, so an empty queue holds no memory of what went through it. An item's key must not change while it is inside.
    """

    def __init__(self, key: Callable[[T], Any]) -> None:
        self._key = key
        self._items: list[T] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """In order. Items behind the present one may be removed meanwhile."""
        return iter(self._items)

    def __reversed__(self) -> Iterator[T]:
        """In descending order."""
        return reversed(self._items)

    @property
    def first(self) -> T:
        """The least item. IndexError when empty."""
        return self._items[0]

    @property
    def last(self) -> T:
        """The greatest item. IndexError when empty."""
        return self._items[-1]

    def add(self, item: T) -> None:
        """Puts `item` in its place. InternalError where an item with the same key is inside."""
        key = self._key(item)
        index = bisect_left(self._items, key, key=self._key)
        if index < len(self._items) and self._key(self._items[index]) == key:
            raise InternalError(f"key {key} is already in the queue", reason="DUPLICATE_IN_QUEUE")
        self._items.insert(index, item)

    def remove(self, item: T) -> None:
        """Takes `item` out. InternalError where it is not inside."""
        index = bisect_left(self._items, self._key(item), key=self._key)
        if index == len(self._items) or self._items[index] is not item:
            raise InternalError(f"key {self._key(item)} is not in the queue", reason="NOT_IN_QUEUE")
        del self._items[index]

    def check_integrity(self) -> None:
        """Raises InternalError unless the keys ascend strictly; O(n)."""
        keys = [self._key(item) for item in self._items]
        for key, following in pairwise(keys):
            if not key < following:
                raise InternalError(f"queue is out of order: {key} before {following}", reason="QUEUE_OUT_OF_ORDER")
