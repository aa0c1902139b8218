"""The bundled model, asked through both processes: its answers are right, so the whole path is."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clforge import Client, Message
from engine_service.bundled import BUNDLED_MODEL
from models.train.curriculum import SKILLS, draw_held_out
from models.train.evaluate import ask_all
from models.train.examination import examination
from models.train.report import Report
from models.train.skills.recall import DISTANCES, personal
from tests.integration.served import served

_ROOT = Path(__file__).parent.parent.parent
_QUESTIONS = 20  # of each skill and distance


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the bundled model."""
    with served(BUNDLED_MODEL) as started:
        yield started


def test_held_out_questions_are_answered_letter_for_letter(address: str) -> None:
    """Nine in ten over all, and no skill or distance far below its promise; all asked at once."""

    async def report() -> Report:
        async with Client(address) as client:
            return Report.of(await ask_all(client, examination(seed=7, num_questions=_QUESTIONS)))

    rows = asyncio.run(report()).rows
    assert len(rows) == len(SKILLS) - 1 + len(DISTANCES)
    assert sum(row.num_right for row in rows) >= 0.9 * _QUESTIONS * len(rows)
    for row in rows:
        floor = 0.6 if row.target is None else row.target - 0.15
        assert row.share >= floor, f"{row.name}: {row.num_right} of {_QUESTIONS}"


def test_what_was_told_in_an_early_turn_is_known_in_a_later_one(address: str) -> None:
    """A fact that the user tells is recalled two turns later, through the template and the engine."""

    async def converse(client: Client, rng: random.Random) -> bool:
        fact, between = personal(rng), draw_held_out(rng, SKILLS["sorting"])
        turns: list[Message] = []
        for text in (fact.sentence, between.text, fact.question):
            turns.append({"role": "user", "content": text})
            events = client.chat(turns, temperature=0.0, max_tokens=128)
            said = "".join([getattr(event, "text", "") async for event in events])
            turns.append({"role": "assistant", "content": said})
        return said == fact.answer

    async def converse_all() -> list[bool]:
        async with Client(address) as client:
            return await asyncio.gather(*(converse(client, random.Random(seed)) for seed in range(20)))

    right = asyncio.run(converse_all())
    assert sum(right) >= 0.8 * len(right), right


def test_the_evaluation_command_fails_where_a_target_is_missed(address: str, tmp_path: Path) -> None:
    """It scores a running server, writes the figures, and its exit code tells whether all targets are reached."""
    file = tmp_path / "figures.json"
    done = _evaluate("--target", address, "--questions", "2", "--json", str(file), "--show-wrong", "1")
    skills = json.loads(file.read_text(encoding="utf-8"))["skills"]
    assert skills.keys() == examination(seed=1, num_questions=1).keys()
    missed = [name for name, each in skills.items() if each["right"] / each["asked"] < (each["target"] or 0)]
    assert done.returncode == bool(missed), done.stderr
    assert all(name in done.stdout for name in skills)
    assert skills["recall 0"]["distance_tokens"][0] < skills["recall 370"]["distance_tokens"][0]


def test_the_evaluation_command_says_that_nobody_answers() -> None:
    """No traceback: one message, and the exit code of a server that cannot be reached."""
    done = _evaluate("--target", "127.0.0.1:9", "--questions", "1")
    assert done.returncode == 3
    assert "no server answers at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def _evaluate(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "models.train.evaluate", *options]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120)
