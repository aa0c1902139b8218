"""Which examples are trained on, and how often each kind comes."""

from __future__ import annotations

import random
from collections.abc import Callable

from models.train.question import Question, is_held_out
from models.train.skills.copying import copying
from models.train.skills.dates import dates
from models.train.skills.letters import counting, spelling
from models.train.skills.lists import alphabet, reversing, sorting
from models.train.skills.recall import recall
from models.train.skills.sums import differences, sums
from models.train.skills.talk import talk, telling

Skill = Callable[[random.Random], Question]

SKILLS: dict[str, Skill] = {
    "recall": recall,
    "copying": copying,
    "sorting": sorting,
    "reversing": reversing,
    "dates": dates,
    "sums": sums,
    "differences": differences,
    "counting": counting,
    "spelling": spelling,
    "alphabet": alphabet,
}
"""The skills with one right answer, in order of importance."""

_WEIGHTS: dict[Skill, float] = {
    recall: 3.0,
    copying: 2.5,
    sorting: 3.0,
    reversing: 1.5,
    dates: 1.5,
    sums: 1.5,
    differences: 1.5,
    counting: 1.5,
    spelling: 1.0,
    alphabet: 2.0,
    talk: 0.5,
    telling: 1.0,
}


def draw(rng: random.Random, skill: Skill | None = None) -> Question:
    """A question to train on: of the given skill or of any, never one that is held out."""
    make = skill or rng.choices(tuple(_WEIGHTS), tuple(_WEIGHTS.values()))[0]
    while True:
        question = make(rng)
        if not is_held_out(question):
            return question


def draw_held_out(rng: random.Random, skill: Skill) -> Question:
    """A question that training never sees."""
    while True:
        question = skill(rng)
        if is_held_out(question):
            return question
