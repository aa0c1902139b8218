"""Copying: give back what was said, whether the words exist or not."""

from __future__ import annotations

import random

from models.train.question import Question
from models.train.skills.stories import passages
from models.train.words import COMMON, NAMES, made_up

_FORMS = (
    "Repeat after me: {text}",
    "Say this: {text}",
    "Copy this: {text}",
    "Repeat: {text}",
    "Copy the following words: {text}",
    "Repeat these words: {text}",
    "Write this again: {text}",
    'Say "{text}".',
    'Repeat "{text}".',
)


def copying(rng: random.Random) -> Question:
    """1 to 16 words, names, made-up words and numbers, or a sentence of a story, to be given back exactly."""
    text = rng.choice(passages(rng)) if rng.random() < 0.25 else _words(rng)
    return Question("copying", rng.choice(_FORMS).format(text=text), text, text)


def _words(rng: random.Random) -> str:
    strangeness = rng.choice((0.0, 0.1, 0.5, 1.0))
    words = [_word(rng, strangeness) for _ in range(rng.randint(1, 16))]
    if rng.random() < 0.2:
        words = " ".join(passages(rng)).split()
        words = rng.sample(words, rng.randint(2, 16))
    if rng.random() < 0.4:
        words[0] = words[0].capitalize()
    if rng.random() < 0.2:
        words[rng.randrange(len(words))] += ","
        words[-1] = words[-1].rstrip(",")
    end = rng.choice((".", "!", "?")) if rng.random() < 0.3 else ""
    return " ".join(words) + end


def _word(rng: random.Random, strangeness: float) -> str:
    if rng.random() < strangeness:
        return made_up(rng) if rng.random() < 0.7 else str(rng.randrange(10 ** rng.randint(1, 5)))
    return rng.choice(NAMES) if rng.random() < 0.1 else rng.choice(COMMON)
