"""Where a sequence's last tokens occurred before: hash chains, as deflate finds its matches (RFC 1951, section 4)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

_MAX_CANDIDATES = 16  # earlier places that are compared, latest first: bounds a look-up
_MIN_MATCH = 2  # tokens that must agree, where so many are looked up; one alone says little of the next
_ID_BITS = 32
_NOWHERE = -1


class NgramIndex:
    """All tokens of a sequence so far. A token costs O(1) to append, 8 bytes, and an entry for each distinct pair."""

    def __init__(self, ngram_size: int) -> None:
        """`ngram_size` is the longest run of last tokens that is compared."""
        self._ngram_size = ngram_size
        self._min_match = min(_MIN_MATCH, ngram_size)
        self._key_mask = (1 << _ID_BITS * self._min_match) - 1
        self._key = 0  # the last `_min_match` tokens
        self._latest: dict[int, int] = {}  # where those of a key ended last
        self._previous = array("i")  # by position: where the tokens that end here ended the time before
        self._token_ids = array("i")

    def __len__(self) -> int:
        return len(self._token_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Appends tokens."""
        key, latest = self._key, self._latest
        for position, token_id in enumerate(token_ids, len(self)):
            key = (key << _ID_BITS | token_id) & self._key_mask
            self._previous.append(latest.get(key, _NOWHERE))
            latest[key] = position
            self._token_ids.append(token_id)
        self._key = key

    def continuation(self, max_tokens: int) -> tuple[int, ...]:
        """The `max_tokens` tokens that followed the longest run of last tokens, the latest time; () where it is new.

        Where that was less than `max_tokens` ago what follows is repeated, so that a loop is continued.
        """
        end = self._best_match()
        if end == _NOWHERE:
            return ()
        period = len(self) - 1 - end
        return tuple(self._token_ids[end + 1 + offset % period] for offset in range(max_tokens))

    def _best_match(self) -> int:
        """Where the longest earlier run ends that is like the end of the tokens."""
        best, best_len = _NOWHERE, self._min_match - 1
        end = self._previous[-1] if self._previous else _NOWHERE
        for _ in range(_MAX_CANDIDATES):
            if end == _NOWHERE or best_len == self._ngram_size:
                break
            if (match_len := self._match_len(end)) > best_len:
                best, best_len = end, match_len
            end = self._previous[end]
        return best

    def _match_len(self, end: int) -> int:
        token_ids, last = self._token_ids, len(self) - 1
        for length in range(min(self._ngram_size, end + 1)):
            if token_ids[end - length] != token_ids[last - length]:
                return length
        return min(self._ngram_size, end + 1)
