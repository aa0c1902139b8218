"""Token ids of long texts that come again and again, such as the instructions that many conversations begin with.

A text is cached as a whole and found by comparison with the whole of it, so that the ids are those of encoding it anew.
Nothing is reused for a text that only begins like another: where a token ends may depend on what follows. Between a
conversation's special tokens each stretch is a text of its own, so a shared system prompt is found.
"""

from __future__ import annotations

import itertools
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable

MIN_CHARACTERS = 256  # encoding fewer takes some tens of microseconds, and they would push out what is worth more
MAX_SHARE = 4  # no text takes more than this part of the cache

_OVERHEAD_BYTES = 256  # of an entry beside its text and ids: key, array, place in the table

Encode = Callable[[str], list[int]]


class EncodeCache:
    """Ids by text; those that were used least recently make room for new ones. Any thread may use it.

    It is shared by all clients: from the time that a request takes, one who knows a whole text of MIN_CHARACTERS or
    more could guess that somebody else has sent it.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` bounds texts, ids and what holds them; 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[int, str], array[int]] = OrderedDict()
        self._owners = itertools.count()
        self.num_bytes = 0
        self.num_queried_characters = 0
        self.num_hit_characters = 0

    def wrap(self, encode: Encode) -> Encode:
        """`encode`, whose result depends on its text alone, with this cache before it.

        Texts of one wrapped function are no other one's, so that vocabularies can share a cache.
        """
        owner = next(self._owners)

        def cached(text: str) -> list[int]:
            if len(text) < MIN_CHARACTERS:
                return encode(text)
            found = self._find((owner, text))
            if found is not None:
                return found.tolist()
            ids = encode(text)
            self._keep((owner, text), array("I", ids))
            return ids

        return cached

    def _find(self, key: tuple[int, str]) -> array[int] | None:
        with self._lock:
            self.num_queried_characters += len(key[1])
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                self.num_hit_characters += len(key[1])
            return found

    def _keep(self, key: tuple[int, str], ids: array[int]) -> None:
        size = _size_bytes(key, ids)
        if size > self._max_bytes // MAX_SHARE:
            return
        with self._lock:
            if key in self._entries:
                return  # two threads have encoded it at once
            self._entries[key] = ids
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= _size_bytes(*self._entries.popitem(last=False))


def _size_bytes(key: tuple[int, str], ids: array[int]) -> int:
    return sys.getsizeof(key[1]) + ids.itemsize * len(ids) + _OVERHEAD_BYTES
