"""Drafts beside what else decides about a token: the output is that without drafts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from engine_service.constraints.spec import ConstraintSpec, Kind
from engine_service.scheduling.sampling_methods import Dry, Mirostat, Xtc
from engine_service.scheduling.sampling_params import SamplingParams
from engine_service.scheduling.speculation import Speculation
from tests.engine_service.constraint_world import ConstraintWorld, Output, constraint_world

ITEMS = {"type": "array", "items": {"enum": ["north", "south"]}, "minItems": 8, "maxItems": 12}
SPECS = {
    "regex": ConstraintSpec.create(Kind.REGEX, "(the cat [0-9] sat[.,] ){12}"),
    "schema": ConstraintSpec.create(Kind.JSON_SCHEMA, json.dumps(ITEMS)),
}


ANYTHING = ConstraintSpec.create(Kind.REGEX, "(?s:.*)")
METHODS: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2, "penalty_window": 12},
    "dry": {"dry": Dry(multiplier=0.8, base=1.5)},
    "xtc": {"xtc": Xtc(probability=0.5, threshold=0.05), "typical_p": 0.9, "top_n_sigma": 2.0},
    "biases": {"logit_bias": ((5, 2.0), (9, -100.0)), "bad_token_sequences": ((3, 4), (7,))},
    "mirostat": {"mirostat": Mirostat(target=3.0)},
}


def outputs(
    world: ConstraintWorld, spec: ConstraintSpec, first_id: int, max_draft_tokens: int, **sampling: Any
) -> list[Output]:
    """What four requests of two choices each give at once."""
    options: dict[str, Any] = {
        "num_choices": 2,
        "logprobs": 2,
        "speculation": Speculation(max_draft_tokens=max_draft_tokens, ngram_size=2),
    }
    seeds = range(1, 5)
    requests = []
    for seed in seeds:
        if sampling:
            options["sampling"] = SamplingParams(seed=seed, temperature=2.0, **sampling)
        requests.append(world.request(seed, spec, max_tokens=60, **options))
    found = world.run(*(replace(request, id=first_id + request.id) for request in requests))
    return [found[first_id + seed, choice] for seed in seeds for choice in range(2)]


@pytest.mark.parametrize("kind", SPECS)
def test_constrained_output_is_the_same_with_drafts(kind: str) -> None:
    """Each row of a draft has the mask that it has in a step of its own; what cannot follow is refused."""
    with constraint_world(context_length=256) as world:
        plain = outputs(world, SPECS[kind], 0, max_draft_tokens=0)
        drafted = outputs(world, SPECS[kind], 100, max_draft_tokens=16)
        assert [output.token_ids for output in drafted] == [output.token_ids for output in plain]
        assert [output.reason for output in drafted] == [output.reason for output in plain]
        stats = world.engine.scheduler.stats()
        assert 0 < stats.accepted_tokens < stats.drafted_tokens


@pytest.mark.parametrize("method", METHODS)
def test_sampling_methods_give_the_same_with_drafts(method: str) -> None:
    """What depends on the tokens before takes a draft's for accepted, row by row, with a constraint and without."""
    with constraint_world(context_length=256) as world:
        for first_id, spec in ((0, SPECS["regex"]), (1000, ANYTHING)):
            plain = outputs(world, spec, first_id, max_draft_tokens=0, **METHODS[method])
            drafted = outputs(world, spec, first_id + 100, max_draft_tokens=16, **METHODS[method])
            assert [output.token_ids for output in drafted] == [output.token_ids for output in plain]
        stats = world.engine.scheduler.stats()
        assert (stats.accepted_tokens > 0) is (method != "mirostat")
