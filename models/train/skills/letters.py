"""Letters in words: a model sees tokens, so it has to spell before it counts."""

from __future__ import annotations

import random

from models.train.question import Question, phrase
from models.train.words import COMMON, NAMES, made_up

_COUNT = (
    'How many times does the letter {letter} appear in "{word}"?',
    "How many times does the letter {letter} appear in {word}?",
    "How many times is the letter {letter} in the word {word}?",
    "Count the letter {letter} in {word}.",
    "How many {letter}'s are in {word}?",
)
_SPELL = ("Spell {word}.", "Spell the word {word}.", "How do you spell {word}?")
_LENGTH = ("How many letters are in {word}?", "How many letters does {word} have?", "Count the letters in {word}.")


def counting(rng: random.Random) -> Question:
    """How often a letter stands in a word: spelled, each match numbered."""
    word = _word(rng)
    letter = rng.choice(word.lower()) if rng.random() < 0.8 else chr(rng.randint(ord("a"), ord("z")))
    spelled, count = [], 0
    for each in word.lower():
        count += each == letter
        spelled.append(f"{each} {count}" if each == letter else each)
    times = "once" if count == 1 else f"{count} times"
    answer = f"{', '.join(spelled)}. The letter {letter} appears {times}."
    return Question("counting", phrase(rng, _COUNT, letter=letter, word=word), answer, f"{letter} {word.lower()}")


def spelling(rng: random.Random) -> Question:
    """A word letter by letter, or its length by numbering them."""
    word = _word(rng)
    if rng.random() < 0.5:
        return Question("spelling", phrase(rng, _SPELL, word=word), f"{', '.join(word.lower())}.", f"spell {word}")
    numbered = ", ".join(f"{letter} {number}" for number, letter in enumerate(word.lower(), 1))
    answer = f"{numbered}. It has {len(word)} letters."
    return Question("spelling", phrase(rng, _LENGTH, word=word), answer, f"length {word}")


def _word(rng: random.Random) -> str:
    kind = rng.random()
    return rng.choice(COMMON) if kind < 0.55 else rng.choice(NAMES) if kind < 0.65 else made_up(rng, rng.randint(2, 3))
