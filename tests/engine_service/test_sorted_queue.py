"""The sorted queue."""

from __future__ import annotations

import random

import pytest

from engine_service.scheduling.sorted_queue import SortedQueue
from service_common.errors import InternalError


def make_queue(*items: str) -> SortedQueue[str]:
    """A queue of words, sorted by their length."""
    queue: SortedQueue[str] = SortedQueue(len)
    for item in items:
        queue.add(item)
    return queue


def test_items_come_in_order_of_their_keys() -> None:
    """However items come in, they stand in order of the key."""
    queue = make_queue("ccc", "a", "bb")
    assert (list(queue), list(reversed(queue))) == (["a", "bb", "ccc"], ["ccc", "bb", "a"])
    assert (queue.first, queue.last, len(queue)) == ("a", "ccc", 3)


def test_an_empty_queue_has_no_ends() -> None:
    """first and last of an empty queue are an error."""
    queue = make_queue()
    for end in ("first", "last"):
        with pytest.raises(IndexError):
            getattr(queue, end)


def test_adding_twice_is_an_error() -> None:
    """A key that is already inside is refused, and the queue stays as it was (MODEL-2)."""
    queue = make_queue("bb")
    with pytest.raises(InternalError, match="key 2 is already in the queue"):
        queue.add("xx")
    assert list(queue) == ["bb"]


@pytest.mark.parametrize("item", ["a", "xx", "ccc"])
def test_removing_what_is_not_inside_is_an_error(item: str) -> None:
    """Removal is checked: an absent item, or another one with the same key, is an error (ISSUE-4)."""
    queue = make_queue("bb")
    with pytest.raises(InternalError, match=f"key {len(item)} is not in the queue"):
        queue.remove(item)
    assert list(queue) == ["bb"]


def test_the_end_may_be_removed_while_iterating() -> None:
    """Removing the last item while iterating shortens the iteration and skips nobody before it."""
    queue = make_queue("a", "bb", "ccc", "dddd")
    seen = []
    for item in queue:
        seen.append(item)
        if len(queue) > 2:
            queue.remove(queue.last)
    assert seen == ["a", "bb"]


def test_check_integrity_finds_a_key_that_changed_inside() -> None:
    """A key changed inside the queue is found and named."""
    queue: SortedQueue[list[int]] = SortedQueue(lambda item: item[0])
    item = [1]
    queue.add(item)
    queue.add([2])
    queue.check_integrity()
    item[0] = 5
    with pytest.raises(InternalError, match="queue is out of order: 5 before 2"):
        queue.check_integrity()


def test_a_thousand_random_operations_agree_with_a_sorted_set() -> None:
    """The queue behaves as a sorted set does."""
    rng, queue, model = random.Random(3), make_queue(), set[str]()
    words = ["x" * length for length in range(40)]
    for _ in range(1000):
        item = rng.choice(words)
        if item in model:
            queue.remove(item)
            model.remove(item)
        else:
            queue.add(item)
            model.add(item)
        assert list(queue) == sorted(model)
