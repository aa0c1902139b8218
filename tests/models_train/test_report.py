"""What an examination's answers come to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.train.question import Question
from models.train.report import Answer, Report


def answers(skill: str, num_right: int, num_wrong: int, distances: tuple[int, ...] = ()) -> list[Answer]:
    """Right answers, then wrong ones."""
    question = Question(skill, "What?", "This.", "key")
    texts = ["This."] * num_right + ["That."] * num_wrong
    padded = (*distances, *[None] * len(texts))
    return [Answer(question, text, True, distance) for text, distance in zip(texts, padded, strict=False)]


def test_right_is_the_whole_answer_and_its_end() -> None:
    """Neither more nor fewer letters, nor an answer that was cut off."""
    question = Question("sums", "What?", "This.", "key")
    assert Answer(question, "This.", True, None).is_right
    for text, has_ended in (("This.", False), ("This. ", True), ("this.", True), ("This", True)):
        assert not Answer(question, text, has_ended, None).is_right


@pytest.mark.parametrize(
    ("skill", "num_right", "is_missed"),
    [("sums", 95, False), ("sums", 94, True), ("recall", 90, False), ("recall", 89, True), ("counting", 0, False)],
)
def test_a_target_is_missed_below_its_share(skill: str, num_right: int, is_missed: bool) -> None:
    """95 % of sums, 90 % of recall at a distance; counting is only reported."""
    report = Report.of({f"{skill} x": answers(skill, num_right, 100 - num_right)})
    assert [row.name for row in report.missed] == ([f"{skill} x"] if is_missed else [])


def test_the_table_names_what_was_missed_and_shows_wrong_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """As many wrong answers as asked for, each with what was expected."""
    Report.of({"sums": answers("sums", 1, 3), "dates": answers("dates", 2, 0)}).print(num_wrong=2)
    shown = capsys.readouterr().out
    assert shown.count("expected This.\n  answered That.") == 2
    assert "25.0%" in shown
    assert "below target: sums\n" in shown


def test_the_figures_are_written_as_json(tmp_path: Path) -> None:
    """Counts, targets, and the shortest and longest distance in tokens."""
    report = Report.of({"recall 20": answers("recall", 2, 1, (31, 58, 40)), "counting": answers("counting", 1, 0)})
    report.write(tmp_path / "figures.json", seed=4)
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {
        "seed": 4,
        "skills": {
            "recall 20": {"right": 2, "asked": 3, "target": 0.9, "distance_tokens": [31, 58]},
            "counting": {"right": 1, "asked": 1, "target": None, "distance_tokens": None},
        },
    }
