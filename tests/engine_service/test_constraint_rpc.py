"""Constraints over GenerateTokens: compiled on the way in, and told of in-band."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from clforge.v1 import engine_pb2 as pb
from clforge.v1 import generation_pb2 as gpb
from tests.engine_service.engine_server import (
    RunningEngine,
    cancel,
    engine_server,
    submit,
    token_bytes,
    updates_of,
)
from tests.engine_service.hostile_constraints import HOSTILE


@pytest.fixture
async def running() -> AsyncIterator[RunningEngine]:
    async with engine_server() as made:
        yield made


def constrained(request_id: int, **kinds: Any) -> pb.GenerateTokensRequest:
    """A submit with the constraint of this kind."""
    return _with(submit(request_id, max_tokens=60), kinds)


def _with(message: pb.GenerateTokensRequest, kinds: dict[str, Any]) -> pb.GenerateTokensRequest:
    message.submit.params.constraint.CopyFrom(gpb.Constraint(**kinds))
    return message


async def outcome(running: RunningEngine, *messages: pb.GenerateTokensRequest) -> dict[int, tuple[str, gpb.Finished]]:
    """Text and end of each request of a stream."""
    call = running.stub.GenerateTokens()
    for message in messages:
        await call.write(message)
    await call.done_writing()
    texts: dict[int, str] = {}
    ends: dict[int, tuple[str, gpb.Finished]] = {}
    async for update in updates_of(call):
        text = b"".join(token_bytes().texts[token_id] for token_id in update.delta.token_ids).decode()
        texts[update.request_id] = texts.get(update.request_id, "") + text
        if update.HasField("finished"):
            ends[update.request_id] = texts[update.request_id], update.finished
    return ends


async def test_every_kind_of_constraint_is_served(running: RunningEngine) -> None:
    """JSON schema, regular expression, grammar in Lark and in GBNF, and choices; one stream holds them all."""
    ends = await outcome(
        running,
        constrained(1, json_schema='{"const": "x y"}'),
        constrained(2, regex="b{3}"),
        constrained(3, grammar='start: "xy" "z"'),
        constrained(4, grammar='root ::= "q"'),
        constrained(5, choices=gpb.Choices(texts=["word"])),
    )
    assert [ends[number][0] for number in range(1, 6)] == ['"x y"', "bbb", "xyz", "q", "word"]
    assert {end.reason for _, end in ends.values()} == {gpb.FINISH_REASON_STOP}
    await running.until_empty()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("params.constraint", _with(submit(1), {})),
        ("params.constraint.choices.texts", _with(submit(1), {"choices": gpb.Choices()})),
        ("params.constraint.grammar", _with(submit(1), {"grammar": "start: nothing"})),
        ("params.constraint.json_schema", _with(submit(1), {"json_schema": '{"not": {}}'})),
    ],
)
async def test_what_cannot_be_asked_for_is_refused(
    running: RunningEngine, field: str, message: pb.GenerateTokensRequest
) -> None:
    """INVALID_ARGUMENT that names the field, in-band."""
    _, end = (await outcome(running, message))[1]
    assert (end.error.code, end.error.message.partition(" is ")[0]) == (3, field)
    await running.until_empty()


@pytest.mark.parametrize("field", ["ignore_eos", "allowed_token_ids"])
async def test_contradictions_are_refused(running: RunningEngine, field: str) -> None:
    """What says by itself which tokens may come, or that none may end the output, excludes a constraint."""
    message = _with(submit(1), {"regex": "a"})
    if field == "ignore_eos":
        message.submit.params.stopping.ignore_eos = True
    else:
        message.submit.params.sampling.allowed_token_ids.append(5)
    _, end = (await outcome(running, message))[1]
    assert end.error.code == 3
    assert field in end.error.message
    await running.until_empty()


async def test_a_cancellation_that_overtakes_the_compiler_is_kept(running: RunningEngine) -> None:
    """The request is accepted and then cancelled, and leaves nothing behind."""
    end = (await outcome(running, constrained(1, regex="[a-z]+"), cancel(1)))[1][1]
    assert end.reason == gpb.FINISH_REASON_CANCELLED
    await running.until_empty()


async def test_who_leaves_while_it_compiles_leaves_nothing(running: RunningEngine) -> None:
    """A stream that is cancelled before its constraint is compiled holds no place."""
    call = running.stub.GenerateTokens()
    await call.write(constrained(1, regex="[a-z]+x"))
    await asyncio.sleep(0.01)
    call.cancel()
    await running.until_empty()


async def test_hostile_constraints_are_bounded(running: RunningEngine) -> None:
    """What is meant to hurt ends with INVALID_ARGUMENT, or is a constraint like any other; the compiler takes half a
    second of processor time at most, and neighbours are served meanwhile."""
    codes: dict[str, int] = {}
    for name, kinds in HOSTILE.items():
        ends = await outcome(running, constrained(1, **kinds), submit(2, max_tokens=5))
        end, neighbour = ends[1][1], ends[2][1]
        assert end.reason in (gpb.FINISH_REASON_STOP, gpb.FINISH_REASON_LENGTH) or end.error.code == 3, (name, end)
        assert neighbour.reason == gpb.FINISH_REASON_LENGTH, name
        codes[name] = end.error.code
    refused = ("a regex of optional letters", "deep groups", "deep arrays", "a chain of rules", "a rule that is itself")
    assert {codes[name] for name in refused} == {3}
    await running.until_empty()
