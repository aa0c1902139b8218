"""Every answer that the model is taught, computed once more from what the question says."""

from __future__ import annotations

import calendar
import random
import re
from collections.abc import Callable

import pytest

from models.train.curriculum import SKILLS
from models.train.examination import examination
from models.train.question import Question
from models.train.skills.recall import DISTANCES, recall
from models.train.words import COMMON

_DRAWS = 1500
_CYCLES = {"day": list(calendar.day_name), "month": list(calendar.month_name)[1:]}
_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def numbers_in(text: str) -> list[int]:
    """All numbers, in order."""
    return [int(digits) for digits in re.findall(r"\d+", text)]


def items_of(answer: str) -> list[str]:
    """The items of an answer that is a list."""
    return answer.removesuffix(".").split(", ")


def words_of(text: str) -> list[str]:
    """The words of a question, however its list is written."""
    return re.sub(r", | and ", " ", text).rstrip(".?").split()


def check_copying(question: Question) -> None:
    """What stands after the colon, or in quotes."""
    quoted = re.fullmatch(r'(?:Say|Repeat) "(.*)"\.', question.text)
    assert question.answer == (quoted[1] if quoted else question.text.partition(": ")[2])


def check_sorting(question: Question) -> None:
    """The question's numbers in order."""
    down = "largest to smallest" in question.text or "descending" in question.text
    ordered = sorted(numbers_in(question.text), reverse=down)
    assert question.answer == ", ".join(map(str, ordered)) + "."


def check_alphabet(question: Question) -> None:
    """The question's plain words in order."""
    words = [word for word in words_of(question.text) if word in COMMON]
    assert question.answer == ", ".join(sorted(words)) + "."


def check_reversing(question: Question) -> None:
    """The words at the question's end, from the last to the first, and none is left out."""
    items, words = items_of(question.answer), words_of(question.text)
    assert words[-len(items) :] == items[::-1]
    assert re.fullmatch(r"(?i)\w+:|reverse|list", words[-len(items) - 1])


def check_dates(question: Question) -> None:
    """The calendar's name so many steps away, and each on the way there."""
    [start] = set(re.findall("|".join(_CYCLES["day"] + _CYCLES["month"]), question.text))
    cycle = _CYCLES["day"] if start in _CYCLES["day"] else _CYCLES["month"]
    named = [_NUMBERS.index(word) + 1 for word in words_of(question.text) if word in _NUMBERS]
    [count] = numbers_in(question.text) + named or [1]
    sign = -1 if re.search(r"\b(before|ago)\b", question.text) else 1
    way = [cycle[(cycle.index(start) + sign * step) % len(cycle)] for step in range(1, count + 1)]
    counted = ", ".join(f"{step} {name}" for step, name in enumerate(way, 1))
    assert question.answer == f"{start}, {counted}. The answer is {way[-1]}."


def check_arithmetic(question: Question) -> None:
    """Every equation of the working holds, and the last is the one that was asked for."""
    equations = re.findall(r"([\d +-]+) = (\d+)", question.answer)
    assert all(eval(left) == int(right) for left, right in equations)
    left, right = equations[-1]
    assert question.answer.endswith(f"{left} = {right}.")
    assert sorted(numbers_in(left)) == sorted(numbers_in(question.text))
    assert ("-" in left) == (question.skill == "differences")
    if question.skill == "differences":
        assert numbers_in(left) == sorted(numbers_in(question.text), reverse=True)


def check_counting(question: Question) -> None:
    """The word, spelled; each match numbered; and the last number said."""
    found = re.search(r"letter (\w) |many (\w)'s", question.text)
    assert found is not None
    letter, word = found[1] or found[2], re.findall(r"\w+", question.text)[-1].lower()
    spelled, said = question.answer.split(". ")
    parts = [part.split() for part in spelled.split(", ")]
    assert [part[0] for part in parts] == list(word)
    assert [part[1:] for part in parts if part[0] == letter] == [[str(n + 1)] for n in range(word.count(letter))]
    assert all(len(part) == 1 for part in parts if part[0] != letter)
    times = "once" if word.count(letter) == 1 else f"{word.count(letter)} times"
    assert said == f"The letter {letter} appears {times}."


def check_spelling(question: Question) -> None:
    """The word's letters; numbered where the length was asked for."""
    word = re.findall(r"\w+", re.sub(r"(?i) have\??$", "", question.text))[-1]
    if re.search("(?i)letters", question.text):
        numbered = ", ".join(f"{letter} {number}" for number, letter in enumerate(word.lower(), 1))
        assert question.answer == f"{numbered}. It has {len(word)} letters."
    else:
        assert question.answer == ", ".join(word.lower()) + "."


def check_recall(question: Question) -> None:
    """The answer stands in the passage exactly once, and nothing else there says the same of the same thing."""
    assert question.text.count(question.answer) == 1
    about = re.match(r".+? (?:is called|is in|lives in|is) ", question.answer)
    assert about is not None
    assert question.text.count(f" {about[0]}") + question.text.startswith(about[0]) == 1
    assert question.text.endswith("?")


_CHECKS: dict[str, Callable[[Question], None]] = {
    "recall": check_recall,
    "copying": check_copying,
    "sorting": check_sorting,
    "reversing": check_reversing,
    "dates": check_dates,
    "sums": check_arithmetic,
    "differences": check_arithmetic,
    "counting": check_counting,
    "spelling": check_spelling,
    "alphabet": check_alphabet,
}


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_equal_an_independent_computation(skill: str) -> None:
    """Of every skill, from the question's text alone."""
    rng = random.Random(skill)
    for _ in range(_DRAWS if skill != "recall" else 300):
        question = SKILLS[skill](rng)
        assert question.skill == skill
        try:
            _CHECKS[skill](question)
        except AssertionError as error:
            raise AssertionError(f"{question.text!r} is answered {question.answer!r}") from error


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_fact_lies_as_far_back_as_it_says(distance: int) -> None:
    """At least so many words lie between the fact and the question, and at most 80 more, other facts included."""
    rng = random.Random(distance)
    for _ in range(100):
        question = recall(rng, distance)
        between = len(question.text.partition(question.answer)[2].split()) - 10
        assert distance - 10 <= between <= distance + 80


def test_an_examination_asks_each_skill_and_each_distance_the_same_number_of_times() -> None:
    """Recall once for each distance; the same questions for the same seed, others for another."""
    asked = examination(seed=3, num_questions=4)
    assert asked.keys() == (SKILLS.keys() - {"recall"}) | {f"recall {distance}" for distance in DISTANCES}
    assert all(len(each) == 4 for each in asked.values())
    assert asked == examination(seed=3, num_questions=4)
    assert asked != examination(seed=4, num_questions=4)
