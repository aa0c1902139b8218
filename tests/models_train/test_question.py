"""Which questions are held out: the same ones always, and training never sees them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from models.train import conversation
from models.train.curriculum import SKILLS, draw, draw_held_out
from models.train.question import Question, is_held_out

_ROOT = Path(__file__).parent.parent.parent
_KEYS = [f"{a}+{b}" for a in range(40) for b in range(a, 40)]
_PROGRAM = """
from models.train.question import is_held_out
from tests.models_train.test_question import problem, _KEYS
print("".join(str(int(is_held_out(problem(key)))) for key in _KEYS))
"""


def problem(key: str) -> Question:
    """A sum of this key."""
    return Question("sums", "", "", key)


def test_what_is_held_out_is_the_same_in_every_process() -> None:
    """It depends neither on the seed nor on how Python hashes strings."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "".join(str(int(is_held_out(problem(key)))) for key in _KEYS)


def test_what_is_held_out_never_changes() -> None:
    """Models have been trained on the rest: another hash would examine them on what they have seen."""
    assert [key for key in _KEYS if is_held_out(problem(key))][:6] == ["0+7", "1+15", "1+31", "2+15", "3+5", "3+19"]


def test_one_problem_in_sixteen_is_held_out() -> None:
    """Within what chance allows for 20,000 problems; without a key none is."""
    count = sum(is_held_out(problem(str(number))) for number in range(20_000))
    assert 20_000 / 16 * 0.9 < count < 20_000 / 16 * 1.1
    assert not is_held_out(problem(""))


@pytest.mark.parametrize("skill", SKILLS)
def test_training_never_draws_what_the_examination_asks(skill: str) -> None:
    """`draw` gives no held-out question of the skill, and `draw_held_out` gives nothing else."""
    rng = random.Random(skill)
    assert not any(is_held_out(draw(rng, SKILLS[skill])) for _ in range(300))
    assert all(is_held_out(draw_held_out(rng, SKILLS[skill])) for _ in range(20))


def test_training_on_any_skill_draws_nothing_held_out() -> None:
    """Nor does `draw` where it chooses the skill, and it chooses each of them."""
    rng = random.Random(1)
    drawn = [draw(rng) for _ in range(2000)]
    assert not any(map(is_held_out, drawn))
    assert {question.skill for question in drawn} >= SKILLS.keys()


@pytest.mark.parametrize("skill", ["sums", "differences", "dates", "sorting"])
def test_the_phrasing_does_not_change_the_key(skill: str) -> None:
    """Problems with one result in words are one problem however they are asked, in whatever order and style."""
    rng = random.Random(skill)
    texts, keys = defaultdict(set), defaultdict(set)
    for _ in range(4000):
        question = SKILLS[skill](rng)
        texts[question.answer].add(question.text)
        keys[question.answer].add(question.key)
    assert max(map(len, texts.values())) > 2
    assert all(len(each) == 1 for each in keys.values())


def test_a_sum_has_one_key_in_either_order() -> None:
    """a + b and b + a are one problem, or the examination could be learned by heart."""
    rng = random.Random(2)
    keys = defaultdict(set)
    for _ in range(4000):
        question = SKILLS["sums"](rng)
        left = question.answer.split(". ")[-1].partition(" = ")[0]
        keys[frozenset(left.split(" + "))].add(question.key)
    assert all(len(each) == 1 for each in keys.values())


def test_no_conversation_holds_what_the_examination_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do the facts that a user tells in one turn and asks for in a later one."""
    turns: list[Question] = []

    def keep(rng: random.Random, asked: list[Question]) -> list[conversation.Segment]:
        turns.extend(asked)
        return []

    monkeypatch.setattr(conversation, "document", keep)
    rng = random.Random(2)
    for _ in range(500):
        conversation.short_document(rng)
        conversation.long_document(rng)
    assert sum(turn.answer == "I will remember that." for turn in turns) > 50
    assert not any(map(is_held_out, turns))
