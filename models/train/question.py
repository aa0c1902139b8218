"""What an example is, and which ones are never trained on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple

_HELD_OUT_OF_256 = 16


class Question(NamedTuple):
    """A question with the one answer that counts as right, letter for letter."""

    skill: str
    """What it tests; scores are given per skill."""
    text: str
    """What the user asks."""
    answer: str
    """The whole answer, working included."""
    key: str
    """The problem without its phrasing: two questions of one key are the same problem."""


def is_held_out(question: Question) -> bool:
    """Whether it belongs to the evaluation: one problem in 16, by a hash of its key, whatever the seed and the phrasing."""
    digest = hashlib.blake2b(f"{question.skill}:{question.key}".encode(), digest_size=1).digest()
    return digest[0] < _HELD_OUT_OF_256


def phrase(rng: random.Random, forms: Sequence[str], **fields: object) -> str:
    """One of ``forms`` with its fields filled in, now and then said politely or without its last mark."""
    text = rng.choice(forms).format(**fields)
    kind = rng.random()
    if kind < 0.08:
        text = f"Please {text[0].lower()}{text[1:]}" if not text.startswith(("What", "Which", "How", "Where")) else text
    elif kind < 0.16 and text[-1] in ".?":
        text = text[:-1]
    elif kind < 0.22:
        text = text[0].lower() + text[1:]
    return text


def article(noun: str) -> str:
    """``noun`` with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
