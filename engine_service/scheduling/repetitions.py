"""DRY: a penalty for tokens that would go on with a repetition (p-e-w, 2024; llama.cpp's `dry`)."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from engine_service.scheduling.adjustments import NONE, AdjustmentArray, subtract
from engine_service.scheduling.sampling_methods import Dry

_LARGEST_PENALTY = 1e30  # far beyond any logit, and finite in f32


class Repetitions:
    """Where the run of tokens that the known ones end with occurred before.

    For each earlier place of the last token, how many tokens up to there equal the last ones; a token more updates the
    places of that token alone, so that it costs as much as the token has places, in numpy.
    """

    def __init__(self, dry: Dry, token_ids: array[int]) -> None:
        """`token_ids` are the known tokens, the owner's own array: it grows and shrinks with `push` and `pop`."""
        self._dry, self._token_ids = dry, token_ids
        self._places: dict[int, array[int]] = {}  # by token, ascending
        # Places and lengths after each `push`.
        self._matches: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
        for position, token_id in enumerate(token_ids):
            self._places.setdefault(token_id, array("q")).append(position)
        self._matches = [_matches_of(token_ids, dry.breaker_ids)]

    def adjustments(self) -> AdjustmentArray:
        """multiplier × base^(L − allowed_length) is taken from each token that followed a run of L ≥ allowed_length."""
        places, lengths = self._matches[-1]
        if self._dry.window:
            start = len(self._token_ids) - self._dry.window
            lengths = np.minimum(lengths, places - start + 1)
        enough = lengths >= self._dry.allowed_length
        if not enough.any():
            return NONE
        places, lengths = places[enough], lengths[enough]
        followers = np.frombuffer(self._token_ids, np.int32)[places + 1]
        longest_first = np.argsort(-lengths, kind="stable")
        token_ids, at = np.unique(followers[longest_first], return_index=True)
        return subtract(token_ids, self._penalties(lengths[longest_first][at]))

    def push(self) -> None:
        """The last of the known tokens is new."""
        token_id = self._token_ids[-1]
        places = self._places.setdefault(token_id, array("q"))
        self._matches.append(self._extended(np.array(places, np.int64)))
        places.append(len(self._token_ids) - 1)

    def pop(self) -> None:
        """The last of the known tokens is about to go; never more than were pushed since `forget`."""
        self._matches.pop()
        self._places[self._token_ids[-1]].pop()

    def forget(self) -> None:
        """What was pushed until now is not popped any more."""
        del self._matches[:-1]

    def _penalties(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            growth = np.float64(self._dry.base) ** (lengths - self._dry.allowed_length)
        return np.minimum(self._dry.multiplier * growth, _LARGEST_PENALTY)

    def _extended(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The matches at `places` of the new last token: each one longer than the match before it, if there was one."""
        if self._token_ids[-1] in self._dry.breaker_ids or not len(places):
            return places[:0], places[:0]
        old_places, old_lengths = self._matches[-1]
        at = np.searchsorted(old_places, places - 1)
        found = at < len(old_places)
        found[found] = old_places[at[found]] == places[found] - 1
        lengths = np.ones(len(places), np.int64)
        lengths[found] += old_lengths[at[found]]
        return places, lengths


def _matches_of(token_ids: array[int], breaker_ids: frozenset[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of the last token, and their lengths, by the Z-algorithm over the reversed tokens: linear in time."""
    known = [-1 - i if t in breaker_ids else t for i, t in enumerate(reversed(token_ids))]  # a breaker equals nothing
    size, lengths = len(known), [0] * len(known)
    left = right = 0  # known[left:right] equals the beginning
    for i in range(1, size):
        length = min(right - i, lengths[i - left]) if i < right else 0
        while i + length < size and known[length] == known[i + length]:
            length += 1
        lengths[i] = length
        if i + length > right:
            left, right = i, i + length
    found = np.flatnonzero(lengths)[::-1]
    return size - 1 - found, np.array(lengths, np.int64)[found]
