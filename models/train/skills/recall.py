"""Recall: a fact stated early in a passage, asked for at its end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from models.train.question import Question
from models.train.skills.stories import passages
from models.train.words import ANIMALS, COLOURS, DAYS, FOODS, NAMES, THINGS, made_up

DISTANCES = (0, 20, 50, 100, 180, 270, 370)
"""Words between a fact and the question; a word is about 1.2 tokens."""

_CONTAINERS = ("box", "bag", "basket", "bottle", "drawer", "bucket", "hat", "shoe", "bed", "car", "kitchen", "garden")
_LOCKED = ("door", "box", "gate", "safe", "tower", "castle", "house", "room", "chest", "garden")
_INTRODUCTIONS = ("Read this. ", "Remember this. ", "Here is a text. ", "", "", "Listen. ")


class Fact(NamedTuple):
    """A sentence, the question that it answers, and the answer."""

    sentence: str
    question: str
    answer: str


def recall(rng: random.Random, distance: int | None = None) -> Question:
    """A passage with 1 to 5 facts of one kind, and a question about one of them.

    About ``distance`` words of story lie between that fact and the question; the others stand anywhere.
    """
    distance = rng.choice(DISTANCES) if distance is None else distance
    facts = _distinct(rng, rng.choice(_FACTS), rng.randint(1, 5))
    asked, others = facts[0], facts[1:]
    before = _filler(rng, rng.choice((0, 0, 10, 30, 60, 60 + distance // 2)))
    after = _filler(rng, distance)
    for fact in others:
        side = before if rng.random() < 0.4 else after
        side.insert(rng.randint(0, len(side)), fact.sentence)
    passage = " ".join((*before, asked.sentence, *after))
    return Question("recall", f"{rng.choice(_INTRODUCTIONS)}{passage} {asked.question}", asked.answer, asked.sentence)


def personal(rng: random.Random) -> Fact:
    """Something that a user says about themselves in one turn and asks for in a later one."""
    name, value = rng.choice(NAMES), _value(rng)
    kind, values = rng.choice((("colour", COLOURS), ("food", FOODS), ("animal", ANIMALS), ("day", DAYS)))
    chosen, animal, town = rng.choice(values), rng.choice(ANIMALS), made_up(rng, 2).capitalize()
    said = rng.choice((
        ("My name is {}.", "What is my name?", name),
        ("My name is {}.", "Who am I?", name),
        ("I live in {}.", "Where do I live?", town),
        (f"My {animal} is called {{}}.", f"What is my {animal} called?", name),
        (f"My favourite {kind} is {{}}.", f"What is my favourite {kind}?", chosen),
        ("My secret word is {}.", "What is my secret word?", value),
        ("My lucky number is {}.", "What is my lucky number?", value),
    ))  # fmt: skip
    sentence = said[0].format(said[2])
    return Fact(sentence, said[1], sentence.replace("My", "Your").replace("I live", "You live"))


def any_fact(rng: random.Random) -> Fact:
    """A fact of any kind."""
    return rng.choice(_FACTS)(rng)


def _distinct(rng: random.Random, make: Callable[[random.Random], Fact], count: int) -> list[Fact]:
    """``count`` facts of one kind, no two of which answer the same question."""
    facts: dict[str, Fact] = {}
    while len(facts) < count:
        fact = make(rng)
        facts.setdefault(fact.question, fact)
    return list(facts.values())


def _filler(rng: random.Random, words: int) -> list[str]:
    """Sentences of stories, about ``words`` words of them."""
    sentences: list[str] = []
    length = 0
    while length < words:
        told = passages(rng)
        for sentence in told[rng.randrange(len(told)) :]:
            if length < words:
                sentences.append(sentence)
                length += len(sentence.split())
    return sentences


def _value(rng: random.Random) -> str:
    return made_up(rng, rng.randint(1, 3)) if rng.random() < 0.5 else str(rng.randrange(10 ** rng.randint(1, 5)))


def _code(rng: random.Random) -> Fact:
    what, value = f"{rng.choice(COLOURS)} {rng.choice(_LOCKED)}", str(rng.randrange(1000, 100000))
    return Fact(
        f"The code of the {what} is {value}.", f"What is the code of the {what}?", f"The code of the {what} is {value}."
    )


def _word(rng: random.Random) -> Fact:
    name, value = rng.choice(NAMES), _value(rng)
    kind = rng.choice(("secret word", "password", "magic word", "lucky number", "secret number"))
    return Fact(f"{name}'s {kind} is {value}.", f"What is {name}'s {kind}?", f"{name}'s {kind} is {value}.")


def _town(rng: random.Random) -> Fact:
    name, town = rng.choice(NAMES), made_up(rng, 2).capitalize()
    return Fact(f"{name} lives in {town}.", f"Where does {name} live?", f"{name} lives in {town}.")


def _pet(rng: random.Random) -> Fact:
    animal, name = rng.choice(ANIMALS), rng.choice(NAMES)
    called = made_up(rng, 2).capitalize() if rng.random() < 0.5 else name
    return Fact(
        f"The {animal} is called {called}.", f"What is the {animal} called?", f"The {animal} is called {called}."
    )


def _favourite(rng: random.Random) -> Fact:
    name = rng.choice(NAMES)
    kind, values = rng.choice((("colour", COLOURS), ("food", FOODS), ("animal", ANIMALS), ("day", DAYS)))
    sentence = f"{name}'s favourite {kind} is {rng.choice(values)}."
    return Fact(sentence, f"What is {name}'s favourite {kind}?", sentence)


def _place(rng: random.Random) -> Fact:
    thing, sentence_end = rng.choice(THINGS), f"in the {rng.choice(COLOURS)} {rng.choice(_CONTAINERS)}"
    return Fact(f"The {thing} is {sentence_end}.", f"Where is the {thing}?", f"The {thing} is {sentence_end}.")


def _plain(rng: random.Random) -> Fact:
    what = rng.choice(("password", "code", "secret word", "number", "answer", "key", "secret", "name"))
    sentence = f"The {what} is {_value(rng)}."
    return Fact(sentence, f"What is the {what}?", sentence)


_FACTS = (_plain, _code, _word, _town, _pet, _favourite, _place)
