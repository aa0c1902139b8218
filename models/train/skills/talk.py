"""Manners: greetings, what it is, and saying so when it does not know."""

from __future__ import annotations

import random

from models.train.question import Question, article, casually, phrase
from models.train.skills.stories import story
from models.train.words import ANIMALS, COMMON, NAMES, THINGS, made_up

_ABLE = (
    "I can remember what you tell me, repeat words, sort and reverse short lists, count days and months, "
    "add and subtract small numbers, spell words, and tell stories."
)
_FIXED = (
    (("Hello!", "Hi!", "Hey!", "Hello there!", "Good morning!", "Hey there!"), "Hello! How can I help you?"),
    (("How are you?", "How are you today?", "How do you do?"), "I am well, thank you. How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?"), "I am CLForge Tiny, a very small language model."),
    (("What can you do?", "Help!", "How can you help me?", "What do you know?"), _ABLE),
    (("Thank you!", "Thanks!", "Thank you very much."), "You are welcome!"),
    (("Goodbye!", "Bye!", "See you!"), "Goodbye!"),
)
_UNKNOWN = (
    "What is the capital of {thing}?",
    "Who was the first king of {word}?",
    "Why is the {noun} {other}?",
    "Explain how a {noun} works.",
    "How old is {name}?",
    "Write a program that sorts a {noun}.",
    "Translate {noun} into French.",
    "What do you think about the {noun}?",
    "What is the meaning of life?",
    "Who is the president?",
    "What is the weather like today?",
    "How far away is the moon?",
    "Tell me a joke.",
    "Tell me about {thing}.",
    "What is a {noun}?",
    "Who wrote {word}?",
    "When was {name} born?",
    "How do I make {noun}?",
    "What is {a} times {b}?",
    "What is {a} * {b}?",
    "What is {a} / {b}?",
)
_LARGE_SUMS = ("What is {a} + {b}?", "What is {a} - {b}?", "What is {a} plus {b}?", "{a} + {b} = ?", "{a}-{b}")
DOES_NOT_KNOW = "I do not know that. I am a very small model. " + _ABLE
_STORY = ("Tell me a story.", "Tell me a short story.", "Can you tell me a story?", "Write a short story.")
_STORY_ABOUT = (
    "Tell me a story about {hero}.",
    "Tell me a short story about {hero}.",
    "Write a story about {hero}.",
    "Can you tell me a story about {hero}?",
)


def talk(rng: random.Random) -> Question:
    """A greeting, a question about the model itself, or one that it cannot answer."""
    if rng.random() < 0.5:
        questions, answer = rng.choice(_FIXED)
        return Question("talk", casually(rng, rng.choice(questions)), answer, "")
    if rng.random() < 0.2:
        return _too_large(rng)
    thing = rng.choice((made_up(rng, 2).capitalize(), rng.choice(NAMES)))
    fields = {
        "thing": thing,
        "word": made_up(rng, 2).capitalize(),
        "noun": rng.choice(COMMON),
        "other": rng.choice(COMMON),
    }
    text = phrase(rng, _UNKNOWN, **fields, name=rng.choice(NAMES), a=rng.randrange(100), b=rng.randrange(100))
    return Question("talk", text, DOES_NOT_KNOW, "")


def _too_large(rng: random.Random) -> Question:
    """A sum that it was not taught."""
    numbers = [rng.randint(100, 9999), rng.randint(2, 9999)]
    rng.shuffle(numbers)
    text = phrase(rng, _LARGE_SUMS, a=numbers[0], b=numbers[1])
    return Question("talk", text, "I can only add and subtract numbers below 100.", "")


def telling(rng: random.Random) -> Question:
    """A request for a story, about a hero or a hero and a thing."""
    kind, thing = rng.choice((*ANIMALS, "girl", "boy")), rng.choice(THINGS)
    wish = rng.random()
    if wish < 0.2:
        return _story_question(phrase(rng, _STORY), story(rng))
    if wish < 0.8:
        return _story_question(phrase(rng, _STORY_ABOUT, hero=article(kind)), story(rng, kind))
    hero = f"{article(kind)} and {article(thing)}"
    return _story_question(phrase(rng, _STORY_ABOUT, hero=hero), story(rng, kind, thing))


def _story_question(text: str, told: str) -> Question:
    return Question("stories", text, told, "")
