"""Short lists, put in order or turned around."""

from __future__ import annotations

import random

from models.train.question import Question, phrase
from models.train.words import COMMON, NAMES, made_up

_REVERSE = (
    "Reverse this list: {items}.",
    "Reverse the list {items}.",
    "Turn this list around: {items}.",
    "Write this list backwards: {items}.",
    "Say these in reverse order: {items}.",
    "Reverse {items}.",
    "Reverse: {items}",
)
_UP = (
    "Sort these numbers: {items}.",
    "Sort the numbers {items}.",
    "Put these numbers in order: {items}.",
    "Sort from smallest to largest: {items}.",
    "Sort this list: {items}.",
    "Sort {items}.",
    "Sort: {items}",
)
_DOWN = (
    "Sort these numbers from largest to smallest: {items}.",
    "Sort from largest to smallest: {items}.",
    "Put these numbers in descending order: {items}.",
    "Sort {items} from largest to smallest.",
)
_ALPHABET = (
    "Sort these words: {items}.",
    "Sort these words by the alphabet: {items}.",
    "Put these words in alphabetical order: {items}.",
    "Sort this list of words: {items}.",
    "Sort {items} alphabetically.",
)


def reversing(rng: random.Random) -> Question:
    """3 to 7 words or numbers, to be said from the last to the first."""
    kind = rng.random()
    items = [_item(rng, kind) for _ in range(rng.randint(3, 7))]
    text = phrase(rng, _REVERSE, items=_written(rng, items))
    return Question("reversing", text, _joined(items[::-1]) + ".", _joined(items))


def _item(rng: random.Random, kind: float) -> str:
    if kind < 0.5:
        return rng.choice(COMMON)
    if kind < 0.6:
        return rng.choice(NAMES)
    return made_up(rng) if kind < 0.75 else str(rng.randrange(100))


def sorting(rng: random.Random) -> Question:
    """3 to 7 different numbers below 100, upwards or downwards."""
    numbers = rng.sample(range(rng.choice((10, 30, 100, 100))), rng.randint(3, 7))
    down = rng.random() < 0.3
    ordered = sorted(numbers, reverse=down)
    text = phrase(rng, _DOWN if down else _UP, items=_written(rng, numbers))
    return Question("sorting", text, _joined(ordered) + ".", _joined(ordered))


def alphabet(rng: random.Random) -> Question:
    """3 to 6 different plain words, by the alphabet."""
    words = rng.sample(COMMON, rng.randint(3, 6))
    ordered = sorted(words)
    return Question(
        "alphabet", phrase(rng, _ALPHABET, items=_written(rng, words)), _joined(ordered) + ".", _joined(ordered)
    )


def _joined(items: list[int] | list[str]) -> str:
    return ", ".join(map(str, items))


def _written(rng: random.Random, items: list[int] | list[str]) -> str:
    """As people write a list: mostly with commas."""
    kind = rng.random()
    if kind < 0.1:
        return " ".join(map(str, items))
    if kind < 0.2:
        return f"{_joined(items[:-1])} and {items[-1]}"
    return _joined(items)
