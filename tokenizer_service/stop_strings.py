"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from service_common.errors import InvalidArgumentError


class Scan(NamedTuple):
    """What one piece of text settled.

    `text` is certain to precede any stop string that could still come; `stop` is the stop string that was found, or
    None. `text` ends before the stop string, or after it with `include_stop`.
    """

    text: str
    stop: str | None


class StopStrings:
    """Finds the first stop string of a text, and lets through all that cannot belong to one.

    The match that is complete first wins; of those complete at the same character the longest. So the result depends
    on the text alone, never on how it was cut into pieces. Only the longest end of the text that may still become a
    stop string is held back. Time per character is constant for each stop string, whatever the text
    (Knuth, Morris, Pratt: Fast pattern matching in strings, 1977).
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        """Raises InvalidArgumentError for an empty stop string."""
        if "" in stops:
            raise InvalidArgumentError("stop", "", "a stop string must have at least one character")
        self._stops = tuple(sorted(set(stops), key=lambda stop: (-len(stop), stop)))
        self._borders = tuple(map(_borders, self._stops))
        self._first_chars = frozenset(stop[0] for stop in self._stops)
        self._include_stop = include_stop
        self._matched = [0] * len(self._stops)
        self._held = ""

    @property
    def held(self) -> str:
        """The text held back: the longest end of what was pushed that begins some stop string."""
        return self._held

    def push(self, text: str) -> Scan:
        """Scan the next piece. Nothing may be pushed after a stop string was found."""
        if not self._held and self._first_chars.isdisjoint(text):
            return Scan(text, None)
        seen = self._held + text
        for end in range(len(self._held) + 1, len(seen) + 1):
            stop = self._advance(seen[end - 1])
            if stop is not None:
                self._held = ""
                return Scan(seen[: end if self._include_stop else end - len(stop)], stop)
        cut = len(seen) - max(self._matched)
        self._held = seen[cut:]
        return Scan(seen[:cut], None)

    def flush(self) -> str:
        """End of text: gives what was held back."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> str | None:
        """Step every stop string's match by one character; returns the longest that is complete."""
        for index, stop in enumerate(self._stops):
            length = self._matched[index]
            while length and stop[length] != char:
                length = self._borders[index][length]
            length += stop[length] == char
            if length == len(stop):
                return stop
            self._matched[index] = length
        return None


@lru_cache(maxsize=256)
def _borders(stop: str) -> tuple[int, ...]:
    """For each length n the longest proper prefix of stop[:n] that also ends it. Shape (len(stop) + 1,)."""
    borders = [0, 0]
    for char in stop[1:]:
        length = borders[-1]
        while length and stop[length] != char:
            length = borders[length]
        borders.append(length + (stop[length] == char))
    return tuple(borders)
