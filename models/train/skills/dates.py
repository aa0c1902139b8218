"""Days and months: what comes after, what came before, how many steps away."""

from __future__ import annotations

import random

from models.train.question import Question, phrase
from models.train.words import DAYS, MONTHS, NUMBERS

_NEXT = (
    "What {unit} comes after {start}?",
    "Which {unit} comes after {start}?",
    "What {unit} follows {start}?",
    "What is the {unit} after {start}?",
    "What comes after {start}?",
)
_LAST = (
    "What {unit} comes before {start}?",
    "Which {unit} comes before {start}?",
    "What is the {unit} before {start}?",
    "What comes before {start}?",
)
_AFTER = (
    "What {unit} comes {count} {unit}s after {start}?",
    "Which {unit} is {count} {unit}s after {start}?",
    "What {unit} is {count} {unit}s after {start}?",
    "What is {count} {unit}s after {start}?",
    "It is {start}. What {unit} is it in {count} {unit}s?",
)
_BEFORE = (
    "What {unit} comes {count} {unit}s before {start}?",
    "Which {unit} is {count} {unit}s before {start}?",
    "What {unit} is {count} {unit}s before {start}?",
    "What is {count} {unit}s before {start}?",
    "It is {start}. What {unit} was it {count} {unit}s ago?",
)
_TODAY = (
    "Today is {start}. What day is it in {count} days?",
    "If today is {start}, what day is it in {count} days?",
)
_TOMORROW = ("Today is {start}. What day is tomorrow?", "If today is {start}, what day is tomorrow?")


def dates(rng: random.Random) -> Question:
    """1 to 7 days or 1 to 12 months from a given one, the way there counted."""
    unit, cycle, most = ("day", DAYS, 7) if rng.random() < 0.45 else ("month", MONTHS, 12)
    start, steps, forward = rng.randrange(len(cycle)), rng.randint(1, most), rng.random() < 0.6
    way = [cycle[(start + (step if forward else -step)) % len(cycle)] for step in range(1, steps + 1)]
    count = NUMBERS[steps] if rng.random() < 0.5 else str(steps)
    if steps == 1:
        forms = _NEXT + _TOMORROW * (unit == "day") if forward else _LAST
    else:
        forms = _AFTER + _TODAY * (unit == "day") if forward else _BEFORE
    text = phrase(rng, forms, unit=unit, start=cycle[start], count=count)
    counted = ", ".join(f"{number} {name}" for number, name in enumerate(way, 1))
    answer = f"{cycle[start]}, {counted}. The answer is {way[-1]}."
    return Question("dates", text, answer, f"{steps} {unit} {'after' if forward else 'before'} {cycle[start]}")
