"""Sums and differences of numbers below 100, with the working of pencil and paper."""

from __future__ import annotations

import random

from models.train.question import Question, phrase

_PLUS = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "How much is {a} + {b}?",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "{a}+{b}",
    "Calculate {a} + {b}.",
)
_MINUS = (
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "How much is {a} - {b}?",
    "{a} - {b} = ?",
    "Subtract {b} from {a}.",
    "{a}-{b}",
    "Calculate {a} - {b}.",
)


def sums(rng: random.Random) -> Question:
    """Two numbers below 100, mostly of two digits, added."""
    a, b = _number(rng), _number(rng)
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = ones // 10
    working = f"{a % 10} + {b % 10} = {ones}" + (", carry 1" if carry else "")
    working += f". {a // 10} + {b // 10}" + (" + 1" if carry else "") + f" = {tens + carry}. "
    text = phrase(rng, _PLUS, a=a, b=b)
    return Question("sums", text, f"{working}{a} + {b} = {a + b}.", f"{min(a, b)}+{max(a, b)}")


def differences(rng: random.Random) -> Question:
    """The smaller of two numbers below 100 taken from the larger."""
    b, a = sorted((_number(rng), _number(rng)))
    borrow = a % 10 < b % 10
    ones = a % 10 + 10 * borrow
    working = f"{ones} - {b % 10} = {ones - b % 10}" + (", borrow 1" if borrow else "")
    working += f". {a // 10} - {b // 10}" + (" - 1" if borrow else "") + f" = {a // 10 - b // 10 - borrow}. "
    return Question("differences", phrase(rng, _MINUS, a=a, b=b), f"{working}{a} - {b} = {a - b}.", f"{a}-{b}")


def _number(rng: random.Random) -> int:
    return rng.randint(10, 99) if rng.random() < 0.9 else rng.randint(0, 9)
