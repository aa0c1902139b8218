"""Examples as documents: conversations in the model's chat format, and plain stories."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from models.train.curriculum import draw
from models.train.question import Question
from models.train.skills.recall import DISTANCES, any_fact, personal, recall
from models.train.skills.stories import story
from models.train.vocabulary import END, START

_SYSTEM = (
    "You are a helpful assistant.",
    "You are CLForge Tiny.",
    "Answer the question.",
    "You are a very small language model.",
)


class Segment(NamedTuple):
    """A piece of a document that is encoded by itself."""

    text: str
    """Empty for a special token."""
    special: str | None
    """``START`` or ``END``."""
    learned: bool
    """Whether the model is trained to say it; the rest is only read."""


def short_document(rng: random.Random) -> list[Segment]:
    """A conversation of 1 to 6 questions, or now and then a plain story."""
    if rng.random() < 0.04:
        return [Segment(story(rng), None, True), _token(END, learned=True)]
    return _conversation(rng, rng.choice((1, 1, 1, 2, 3, 4, 6)))


def long_document(rng: random.Random) -> list[Segment]:
    """A question about a fact that lies far back, or a long conversation."""
    if rng.random() < 0.2:
        return _conversation(rng, rng.randint(8, 14))
    distance = rng.choice(DISTANCES[1:])
    return document(rng, [draw(rng, lambda generator: recall(generator, distance))])


Document = Callable[[random.Random], list[Segment]]


def _conversation(rng: random.Random, num_turns: int) -> list[Segment]:
    """Questions with their answers, sometimes with a fact told in the first and asked for in the last."""
    turns = [draw(rng) for _ in range(num_turns)]
    return document(rng, _told(rng, turns) if rng.random() < 0.15 else turns)


def _told(rng: random.Random, turns: list[Question]) -> list[Question]:
    """``turns`` between a fact that the user tells and the question about it."""
    asked = draw(rng, _about_a_fact)
    told = rng.choice(("{}", "{}", "Remember this: {}", "Hello! {}")).format(asked.key)
    return [Question("recall", told, "I will remember that.", asked.key), *turns, asked]


def _about_a_fact(rng: random.Random) -> Question:
    fact = any_fact(rng) if rng.random() < 0.5 else personal(rng)
    return Question("recall", fact.question, fact.answer, fact.sentence)


def document(rng: random.Random, turns: list[Question], *, system: bool = True) -> list[Segment]:
    """``turns`` in the form of the chat template, now and then after a system prompt where ``system`` allows it."""
    opening = _message("system", rng.choice(_SYSTEM)) if system and rng.random() < 0.1 else []
    return opening + [
        segment
        for turn in turns
        for segment in (*_message("user", turn.text), *_message("assistant", turn.answer, learned=True))
    ]


def _message(role: str, text: str, *, learned: bool = False) -> list[Segment]:
    return [
        _token(START),
        Segment(f"{role}\n", None, learned=False),
        Segment(text, None, learned),
        _token(END, learned=learned),
        Segment("\n", None, learned=False),
    ]


def _token(name: str, *, learned: bool = False) -> Segment:
    return Segment("", name, learned)
