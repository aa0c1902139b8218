"""What the bundled model is compared with llama.cpp on: held-out questions, and the logits along some of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_service.bundled import BUNDLED_MODEL
from models.train.examination import examination
from tests.in_process import logits
from tests.parity.cases import FIXTURE
from tests.parity.reference_model import ReferenceModel

ANSWERS = FIXTURE / "answers.json"
_TRACED_SKILLS = ("copying", "sorting", "dates", "sums", "recall 0", "recall 20", "recall 50", "recall 100")

_examination = examination(seed=9, num_questions=3)
QUESTIONS = [question for each in _examination.values() for question in each]
TRACED = [QUESTIONS.index(_examination[name][0]) for name in _TRACED_SKILLS]
"""The questions along whose prompts and answers logits are compared: together, since one alone varies by a fifth."""


def our_logits(traces: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """The engine's, after each token of each trace: (total length, vocab_size)."""
    return np.concatenate([logits(BUNDLED_MODEL, list(trace)) for trace in traces])


def exact_logits(traces: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """E, of the same shape."""
    model = ReferenceModel(BUNDLED_MODEL)
    return np.concatenate([model.logits(list(trace)) for trace in traces])


def ids_sha256(token_ids: Sequence[int]) -> str:
    """A name for ids that are too many to be kept."""
    return hashlib.sha256(json.dumps(list(token_ids)).encode()).hexdigest()


def record() -> dict[str, Any]:
    """The fixture: `sha256` of the model, `llama_cpp_distance`, and `answers` to QUESTIONS, each with `prompt_sha256`
    and `answer_ids`."""
    document: dict[str, Any] = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return document
