"""The bundled model beside llama.cpp: the same prompts, the same greedy answers, logits as near to float64."""

from __future__ import annotations

import hashlib

import pytest

from engine_service.bundled import BUNDLED_MODEL
from tests.models_train.bundled import greedy_ids, rendered
from tests.parity.bundled_case import QUESTIONS, TRACED, exact_logits, ids_sha256, our_logits, record
from tests.parity.cases import QUANTISED_FACTOR
from tests.parity.distance import distance


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """The questions as our chat path renders and encodes them."""
    sha256 = hashlib.sha256(BUNDLED_MODEL.read_bytes()).hexdigest()
    assert sha256 == record()["sha256"], "the bundled model has changed: run make parity"
    return [chat.token_ids for chat in rendered(QUESTIONS)]


def test_prompts_and_greedy_answers_are_those_of_llama_cpp(prompts: list[list[int]]) -> None:
    """Template, vocabulary and every greedy token of every held-out question asked: no exception."""
    answers = record()["answers"]
    assert [ids_sha256(prompt) for prompt in prompts] == [answer["prompt_sha256"] for answer in answers]
    assert greedy_ids(prompts) == [answer["answer_ids"] for answer in answers]


def test_logits_along_answers_are_as_near_to_float64_as_promised(prompts: list[list[int]]) -> None:
    """Within 1.1 × llama.cpp's distance, as every other quantised model."""
    traces = [prompts[number] + record()["answers"][number]["answer_ids"] for number in TRACED]
    assert distance(our_logits(traces), exact_logits(traces)) <= QUANTISED_FACTOR * record()["llama_cpp_distance"]
