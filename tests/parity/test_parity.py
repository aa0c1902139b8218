"""Our logits against float64, and against llama.cpp's distance from it as the fixture records it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.in_process import logits
from tests.parity.cases import CASES, FIXTURE, FLOAT_LIMITS, QUANTISED_FACTOR, TOKEN_IDS, Case, make_model
from tests.parity.distance import decided_rows, distance
from tests.parity.reference_model import ReferenceModel


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_are_as_near_to_float64_as_promised(
    case: Case, model_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Float formats keep their limit, quantised ones are within 1.1 × llama.cpp's distance, clear argmaxes agree."""
    record = json.loads((FIXTURE / "fixture.json").read_text(encoding="utf-8"))["cases"][case.name]
    path = make_model(case, Path() if case.is_kept else request.getfixturevalue("shared_data"), model_folder)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"], "the model has changed: run make parity"
    exact = ReferenceModel(path).logits(TOKEN_IDS)
    ours = logits(path, TOKEN_IDS, kv_cache_type=case.kv_cache_type)
    limit = FLOAT_LIMITS.get(case.file_format) or QUANTISED_FACTOR * record["llama_cpp_distance"]
    assert distance(ours, exact) <= limit
    decided = decided_rows(ours, exact)
    assert decided.any()
    assert (ours.argmax(axis=-1) == exact.argmax(axis=-1))[decided].all()
    assert np.isfinite(ours).all()
