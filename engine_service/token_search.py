"""Which tokens have a string in their text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class TokenSearch:
    """All tokens' texts as one array, so that a search is a few passes over it; the last answers are kept."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._bytes = np.frombuffer(b"".join(texts), np.uint8)
        self._ends = np.cumsum([len(text) for text in texts])
        self.ids_containing = lru_cache(maxsize=256)(self._ids_containing)

    def _ids_containing(self, wanted: bytes) -> frozenset[int]:
        """Ids of the tokens that hold `wanted`, which is not empty, within their own text."""
        places = np.flatnonzero(self._bytes[: max(0, len(self._bytes) - len(wanted) + 1)] == wanted[0])
        for offset, byte in enumerate(wanted[1:], 1):
            places = places[self._bytes[places + offset] == byte]
        ids = np.searchsorted(self._ends, places, side="right")
        return frozenset(ids[places + len(wanted) <= self._ends[ids]].tolist())
