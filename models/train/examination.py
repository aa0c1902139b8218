"""The questions of an examination: held out, of every skill, and of recall at every distance."""

from __future__ import annotations

import random
from functools import partial

from models.train.curriculum import SKILLS, draw_held_out
from models.train.question import Question
from models.train.skills.recall import DISTANCES, recall


def examination(seed: int, num_questions: int) -> dict[str, list[Question]]:
    """``num_questions`` held-out questions of each skill, and of recall for each distance ("recall 0" and so on)."""
    rng = random.Random(seed)
    makers = {name: skill for name, skill in SKILLS.items() if skill is not recall}
    makers |= {f"recall {distance}": partial(recall, distance=distance) for distance in DISTANCES}
    return {name: [draw_held_out(rng, make) for _ in range(num_questions)] for name, make in makers.items()}
