"""Constrained outputs through the engine: they match, whatever runs beside them, and end as they should."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from engine_service.constraints.compiler import GrammarCompiler
from engine_service.constraints.spec import ConstraintSpec, Kind
from engine_service.scheduling.sampling_params import GenerationLimits
from engine_service.scheduling.sequence import FinishReason
from tests.engine_service.constraint_corpus import Case, corpus
from tests.engine_service.constraint_world import ConstraintWorld, Output, constraint_world

_DIGITS = ConstraintSpec(Kind.REGEX, "[0-9]+")
_LIST = ConstraintSpec(Kind.JSON_SCHEMA, '{"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}}')


@pytest.fixture(scope="module")
def world() -> Iterator[ConstraintWorld]:
    """The bundled model, up to 32 sequences a step."""
    with constraint_world(max_num_seqs=32) as made:
        yield made


def _check(case: Case, text: str) -> None:
    if case.texts is not None:
        assert text in case.texts
    elif case.pattern is not None:
        assert re.fullmatch(case.pattern, text), (case.pattern, text)
    else:
        jsonschema.Draft202012Validator(case.schema).validate(json.loads(text))


def test_every_finished_output_matches_its_constraint(world: ConstraintWorld) -> None:
    """200 schemas, expressions, grammars and lists of choices, in full batches of tokens drawn nearly at random: what
    ends with STOP is valid, and what max_tokens has cut says LENGTH."""
    cases = corpus()
    assert len(cases) == 200
    outputs = world.run(*(world.request(number, case.spec, 80) for number, case in enumerate(cases, 1)))
    finished = 0
    for number, case in enumerate(cases, 1):
        output = outputs[number, 0]
        if output.reason is FinishReason.STOP:
            finished += 1
            _check(case, world.text(output))
        else:
            assert output.reason is FinishReason.LENGTH, (case.spec, output.end)
            assert len(output.token_ids) == 80
    assert finished > 120


def test_tokens_are_the_same_alone_and_under_load(world: ConstraintWorld) -> None:
    """A constrained request in a crowd, with prefixes from the cache, gives what it gives alone."""
    specs = [case.spec for case in corpus()[::25]]
    alone = [world.run(world.request(n, spec, 40))[n, 0].token_ids for n, spec in enumerate(specs, 1)]
    crowd = world.run(*(world.request(n, spec, 40) for n, spec in enumerate(specs, 1)))
    assert [crowd[n, 0].token_ids for n in range(1, len(specs) + 1)] == alone


def test_a_constraint_survives_preemption() -> None:
    """With too few KV blocks for all, sequences are computed again, and their constraints go on where they were."""
    spec = ConstraintSpec(Kind.REGEX, "([a-z]{2}[0-9])+")
    with constraint_world(max_num_seqs=4, context_length=128, kv_cache_bytes="512KiB") as world:
        requests = [world.request(n, spec, 90) for n in range(1, 5)]
        outputs = world.run(*requests)
        assert world.engine.scheduler.stats().num_preemptions > 0
        for number, output in outputs.items():
            assert re.match("([a-z]{2}[0-9])*", world.text(output)), number
            assert world.run(world.request(number[0], spec, 90))[number].token_ids == output.token_ids


def test_choices_of_one_request_go_their_own_ways(world: ConstraintWorld) -> None:
    """n answers differ, and each matches by itself."""
    spec = ConstraintSpec(Kind.REGEX, "[a-z]{6}")
    outputs = world.run(world.request(1, spec, num_choices=8))
    texts = {world.text(output) for output in outputs.values()}
    assert len(texts) > 4
    assert all(re.fullmatch("[a-z]{6}", text) for text in texts)


def test_an_output_that_can_go_no_further_stops_at_once(world: ConstraintWorld) -> None:
    """STOP comes with the last token: no end-of-generation token is sampled, and min_tokens does not count."""
    spec = ConstraintSpec(Kind.CHOICES, '["yes"]')
    limits = GenerationLimits(max_tokens=50, min_tokens=50)
    several: list[dict[str, Any]] = [{}, {"limits": limits}]
    for options in several:
        output = world.run(world.request(1, spec, **options))[1, 0]
        assert (output.reason, world.text(output)) == (FinishReason.STOP, "yes")
        assert output.end is not None
        assert (output.end.stop_token_id, output.end.usage.generated_tokens) == (None, len(output.token_ids))


def test_an_output_that_may_end_ends_with_the_models_own_token(world: ConstraintWorld) -> None:
    """Where the constraint is met and could go on, end-of-generation is one token among others."""
    outputs = world.run(*(world.request(n, _DIGITS, 200) for n in range(1, 9)))
    ended = [output for output in outputs.values() if output.reason is FinishReason.STOP]
    assert ended
    assert all(output.end is not None and output.end.stop_token_id in world.tokens.eog_ids for output in ended)
    assert all(re.fullmatch("[0-9]+", world.text(output)) for output in ended)


def test_min_tokens_holds_where_the_constraint_can_go_on(world: ConstraintWorld) -> None:
    """No end before it, and a valid output behind it."""
    limits = GenerationLimits(max_tokens=200, min_tokens=30)
    for number in range(1, 5):
        output = world.run(world.request(number, _DIGITS, limits=limits))[number, 0]
        assert len(output.token_ids) >= 30
        assert re.fullmatch("[0-9]+", world.text(output))


def test_a_stop_token_ends_the_output_anywhere(world: ConstraintWorld) -> None:
    """Stop ids go before the constraint: what is there then is the beginning of a valid output."""
    stop_id = world.tokens.texts.index(b",")
    limits = GenerationLimits(max_tokens=100, stop_token_ids=(stop_id,))
    ends = [world.run(world.request(n, _LIST, limits=limits))[n, 0] for n in range(1, 9)]
    stopped = [output for output in ends if output.end is not None and output.end.stop_token_id == stop_id]
    assert stopped
    assert all(re.fullmatch(r"\[\s*([0-9]\s*)?(,[ \n]*[0-9]\s*)*", world.text(output)) for output in stopped)


def test_the_last_allowed_token_may_complete_the_output(world: ConstraintWorld) -> None:
    """An output that is complete with its max_tokens-th token has ended with STOP."""
    spec = ConstraintSpec(Kind.REGEX, "[a-z]{3}[0-9]{3}")
    length = len(world.run(world.request(1, spec))[1, 0].token_ids)
    for max_tokens, reason in ((length, FinishReason.STOP), (length - 1, FinishReason.LENGTH)):
        assert world.run(world.request(1, spec, max_tokens))[1, 0].reason is reason


def test_a_grammar_that_leads_nowhere_ends_with_an_error(world: ConstraintWorld) -> None:
    """Where no token may follow, the choice ends with ERROR, which names the constraint, and its neighbour goes on."""
    no_digits = [b"" if re.search(rb"[0-9]", text) else text for text in world.tokens.texts]
    compiler = GrammarCompiler(lambda: world.tokens._replace(texts=no_digits))
    grammar = compiler.compile_now(ConstraintSpec(Kind.REGEX, "[a-z]{40}[0-9]"))
    compiler.close()
    neighbour = ConstraintSpec(Kind.REGEX, "[a-z]{30}")
    outputs = world.run(world.request(1, neighbour, grammar=grammar), world.request(2, neighbour))
    failed: Output = outputs[1, 0]
    assert failed.reason is FinishReason.ERROR
    assert failed.end is not None
    assert "params.constraint.regex" in str(failed.end.error)
    assert re.fullmatch("[a-z]{30}", world.text(outputs[2, 0]))
