"""What an example is, and which ones are never trained on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple

_HELD_OUT_OF_256 = 16
_REQUESTS = ("Sort", "Reverse", "Put", "Turn", "Say", "Spell", "Count", "Add", "Subtract", "Calculate", "Tell", "Write")


class Question(NamedTuple):
    """A question with the one answer that counts as right, letter for letter."""

    skill: str
    """What it tests; scores are given per skill."""
    text: str
    """What the user asks."""
    answer: str
    """The whole answer, working included."""
    key: str
    """The problem without its phrasing: questions of one key are the same problem. Empty where nothing is examined."""


def is_held_out(question: Question) -> bool:
    """Whether it belongs to the evaluation: one problem in 16, by a hash of its key, whatever seed and phrasing are."""
    digest = hashlib.blake2b(f"{question.skill}:{question.key}".encode(), digest_size=1).digest()
    return bool(question.key) and digest[0] < _HELD_OUT_OF_256


def phrase(rng: random.Random, forms: Sequence[str], **fields: object) -> str:
    """One of ``forms`` with its fields filled in, now and then said politely or casually."""
    text = rng.choice(forms).format(**fields)
    if rng.random() < 0.08 and text.startswith(_REQUESTS):
        return f"Please {text[0].lower()}{text[1:]}"
    return casually(rng, text)


def casually(rng: random.Random, text: str) -> str:
    """``text`` as people type it: sometimes shortened, without its last mark or its first capital."""
    if rng.random() < 0.1:
        text = text.replace("What is", "What's")
    kind = rng.random()
    if kind < 0.1 and text[-1] in ".?!":
        return text[:-1]
    if kind < 0.2:
        return text[0].lower() + text[1:]
    return (
        text.lower().rstrip(".?!") if kind < 0.25 and text.isascii() and not any(map(str.isupper, text[1:])) else text
    )


def article(noun: str) -> str:
    """``noun`` with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
