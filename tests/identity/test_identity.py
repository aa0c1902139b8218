"""The identity check itself, in a short form."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import FinishReason, Request
from service_common.options import child_environment
from tests.identity.answer import Answer, Answered, difference
from tests.identity.check import MIN_COUNT, MUST_HAPPEN, Result
from tests.identity.report import complaints, summary
from tests.identity.world import Counts, Outcome, World

ROOT = Path(__file__).parents[2]
LENGTH, STOP, CANCELLED = FinishReason.LENGTH, FinishReason.STOP, FinishReason.CANCELLED
TOKENS = (SampledToken(5, -0.5, ((5, -0.5), (6, -1.0))), SampledToken(7, 0.0, ()))
REQUEST = Request(
    id=3,
    prompt_ids=(1,),
    sampling=SamplingParams(seed=1),
    limits=GenerationLimits(max_tokens=2),
    arrival=0.0,
)
ENOUGH = Counts(*[MIN_COUNT] * len(MUST_HAPPEN))


def test_requests_give_the_same_bits_under_load() -> None:
    """`make identity` with fewer requests: all layouts, both services, everything that could change a bit (MODEL-2)."""
    options = ("--requests", "60", "--layout-requests", "5", "--fresh", "2", "--seed", "1")
    command = [sys.executable, "-m", "tests.identity", *options]
    run = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
    assert "\n0 of 115 differ; 2 of them asked in a fresh process too\n" in run.stdout, run.stdout + run.stderr
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("answer", "is_same"),
    [
        (Answer(TOKENS, LENGTH), True),
        (Answer(TOKENS, STOP), False),
        (Answer(TOKENS, LENGTH, stop_token_id=2), False),
        (Answer(TOKENS, None), False),
        (Answer(TOKENS[:1], LENGTH), False),
        (Answer(TOKENS[:1], CANCELLED, is_cut=True), True),
        (Answer((), CANCELLED, is_cut=True), True),
        (Answer((*TOKENS, TOKENS[0]), CANCELLED, is_cut=True), False),
        (Answer((TOKENS[0]._replace(top=((5, -0.5), (8, -1.0))), TOKENS[1]), LENGTH), False),
        (Answer((TOKENS[0], TOKENS[1]._replace(logprob=-0.0)), LENGTH), False),
        (Answer((TOKENS[0]._replace(token_id=6),), CANCELLED, is_cut=True), False),
    ],
)
def test_every_bit_is_compared(answer: Answer, is_same: bool) -> None:
    """Ids, log-probabilities and the end count; only what was cut short may be a prefix."""
    assert (difference(Answered(REQUEST, (answer,)), [Answer(TOKENS, LENGTH)]) is None) is is_same


def test_all_choices_are_compared() -> None:
    """A difference in the last choice is one."""
    answers = (Answer(TOKENS, LENGTH), Answer(TOKENS[:1], LENGTH))
    found = difference(Answered(replace(REQUEST, num_choices=2), answers), [Answer(TOKENS, LENGTH)] * 2)
    assert found is not None
    assert found.startswith("request 3, choice 1 ended")


def result(counts: Counts, error: str | None = None, differences: dict[int, str] | None = None) -> Result:
    outcome = Outcome([Answered(REQUEST, (Answer(TOKENS, LENGTH),))], counts, error)
    return Result(World(Path("some.gguf"), "f16", 1, 0, 1), outcome, differences or {})


def test_a_run_that_shows_too_little_fails() -> None:
    """Each count that has to be reached is missed by one, and complained of."""
    assert complaints([result(ENOUGH)]) == []
    for name in MUST_HAPPEN:
        [line] = complaints([result(ENOUGH._replace(**{name: MIN_COUNT - 1}))])
        assert line.startswith(f"{name.replace('_', ' ')}: {MIN_COUNT - 1}; at least {MIN_COUNT}")
    assert complaints([result(ENOUGH._replace(evictions=MIN_COUNT - 1)), result(Counts(evictions=1))]) == []


def test_differences_and_broken_engines_fail_a_run() -> None:
    """Both are said in words, and the former counted."""
    results = [result(ENOUGH, error="KeyError(4)", differences={3: "request 3 is wrong"})]
    assert complaints(results) == ["some, f16, 1 thread, seed 0 ended early: KeyError(4)", "request 3 is wrong"]
    assert summary(results) == "1 of 1 differ"
