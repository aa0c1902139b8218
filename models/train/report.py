"""What an examination has found: a table, a JSON file, and whether the model is as good as promised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from models.train.question import Question

TARGETS = {"recall": 0.90} | dict.fromkeys(("copying", "sorting", "dates", "sums", "differences"), 0.95)
"""The share of right answers that is promised; the other skills are only reported."""
_SHOWN_CHARACTERS = 160
_console = Console()


class Answer(NamedTuple):
    """What the model said to a question."""

    question: Question
    text: str
    has_ended: bool
    """Whether it ended the answer by itself."""
    distance: int | None
    """Tokens from the end of the fact that is asked for to the end of the question; ``None`` but for recall."""

    @property
    def is_right(self) -> bool:
        """Whether it is the expected answer, and nothing else."""
        return self.has_ended and self.text == self.question.answer


class Row(NamedTuple):
    """The answers of one skill, or of recall at one distance."""

    name: str
    answers: list[Answer]

    @property
    def num_right(self) -> int:
        """How many are right."""
        return sum(answer.is_right for answer in self.answers)

    @property
    def share(self) -> float:
        """How many are right, 0 to 1."""
        return self.num_right / len(self.answers)

    @property
    def target(self) -> float | None:
        """What ``share`` must reach, where that is promised."""
        return TARGETS.get(self.answers[0].question.skill)

    @property
    def is_missed(self) -> bool:
        """Whether it does not."""
        return self.target is not None and self.share < self.target

    @property
    def distances(self) -> tuple[int, int] | None:
        """The shortest and the longest of recall's distances, in tokens."""
        found = [answer.distance for answer in self.answers if answer.distance is not None]
        return (min(found), max(found)) if found else None

    def figures(self) -> dict[str, Any]:
        """For the JSON file."""
        counts = {"right": self.num_right, "asked": len(self.answers)}
        return counts | {"target": self.target, "distance_tokens": self.distances}


class Report(NamedTuple):
    """All answers of an examination."""

    rows: list[Row]

    @classmethod
    def of(cls, answers: Mapping[str, list[Answer]]) -> Report:
        """The report on the answers of each skill and distance."""
        return cls([Row(name, each) for name, each in answers.items()])

    @property
    def missed(self) -> list[Row]:
        """What has not reached its target."""
        return [row for row in self.rows if row.is_missed]

    def print(self, num_wrong: int) -> None:
        """The table; before it, up to ``num_wrong`` wrong answers of each row."""
        for row in self.rows:
            wrong = [answer for answer in row.answers if not answer.is_right]
            for answer in wrong[:num_wrong]:
                _print_wrong(row.name, answer)
        _console.print(_table(self.rows))
        if self.missed:
            _console.print(f"[red]below target: {', '.join(row.name for row in self.missed)}")

    def write(self, path: Path, seed: int) -> None:
        """Writes the figures as JSON."""
        document = {"seed": seed, "skills": {row.name: row.figures() for row in self.rows}}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _print_wrong(name: str, answer: Answer) -> None:
    asked = answer.question.text
    shown = asked if len(asked) <= _SHOWN_CHARACTERS else f"… {asked[-_SHOWN_CHARACTERS:]}"
    ending = "" if answer.has_ended else " …"
    lines = (f"{name}: {shown}", f"  expected {answer.question.answer}", f"  answered {answer.text}{ending}")
    _console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _table(rows: list[Row]) -> Table:
    table = Table("skill", title="held-out questions answered, letter for letter")
    for name in ("tokens to the fact", "right", "asked", "share", "target"):
        table.add_column(name, justify="right")
    for row in rows:
        distances = "–".join(map(str, row.distances or ()))
        share = f"[red]{row.share:.1%}[/]" if row.is_missed else f"{row.share:.1%}"
        target = "" if row.target is None else f"{row.target:.0%}"
        table.add_row(row.name, distances, str(row.num_right), str(len(row.answers)), share, target)
    return table
