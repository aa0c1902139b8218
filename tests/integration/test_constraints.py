"""Structured output through both processes, as users ask for it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clforge import Client, Completion, Event, Finished, FinishReason, InvalidRequestError
from engine_service.bundled import BUNDLED_MODEL
from tests.integration.served import CLFORGE, environment, served

_SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "owl"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the bundled model."""
    with served(BUNDLED_MODEL) as started:
        yield started


async def _said(events: AsyncIterator[Event]) -> tuple[str, Finished]:
    text = ""
    async for event in events:
        text += getattr(event, "text", "")
        if isinstance(event, Finished):
            return text, event
    raise AssertionError("the stream ended early")


def test_the_sdk_asks_for_every_kind_of_constraint(address: str) -> None:
    """A schema, an expression, a grammar, choices; the text is what the constraint says, and the end is STOP."""

    async def ask() -> list[tuple[str, Finished]]:
        async with Client(address) as client:
            chats = (
                client.chat("Describe an animal.", json_schema=_SCHEMA, seed=1),
                client.chat("Give me a code.", regex="[A-Z]{2}-[0-9]{3}", seed=2),
                client.chat("Count.", grammar='root ::= "one" (", two" ", three"?)?', seed=3),
                client.chat("Yes or no?", choices=["yes", "no"], seed=4),
            )
            return list(await asyncio.gather(*(_said(events) for events in chats)))

    (schema, *_), (code, *_), (count, *_), (choice, *_) = answers = asyncio.run(ask())
    assert {end.reason for _, end in answers} == {FinishReason.STOP}
    found = json.loads(schema)
    assert found["name"] in ("fox", "owl")
    assert found["age"] in range(100)
    assert re.fullmatch("[A-Z]{2}-[0-9]{3}", code)
    assert count in ("one", "one, two", "one, two, three")
    assert choice in ("yes", "no")


def test_a_stop_string_cuts_a_constrained_text(address: str) -> None:
    """What comes before it is the beginning of a valid output, and `matched_stop` tells of it."""

    async def ask() -> tuple[str, Finished]:
        async with Client(address) as client:
            return await _said(client.generate("x", json_schema=_SCHEMA, stop=['"age"'], seed=5))

    text, end = asyncio.run(ask())
    assert (end.reason, end.matched_stop) == (FinishReason.STOP, '"age"')
    assert re.fullmatch(r'\{\s*"name"\s*:\s*"(fox|owl)"\s*,\s*', text)


def test_a_constraint_that_cannot_be_served_is_told_of(address: str) -> None:
    """The error names the field, and the server goes on."""

    async def ask() -> str:
        async with Client(address) as client:
            with pytest.raises(InvalidRequestError, match=r"params\.constraint\.json_schema") as failure:
                await client.complete("x", json_schema={"not": {}})
            answer: Completion = await client.complete("x", choices=["fine"])
            assert answer.text == "fine"
            return str(failure.value.field)

    assert asyncio.run(ask()) == "params.constraint.json_schema"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--choice", "one", "--choice", "two"], "one|two"),
        (["--regex", "[0-9]{4}"], "[0-9]{4}"),
        (["--json-schema", '{"enum": [1, 2]}'], "1|2"),
        (["--json-schema", "schema.json"], "true|false"),
        (["--grammar", "words.lark"], "(ab){2}"),
    ],
)
def test_the_command_line_takes_constraints(address: str, tmp_path: Path, options: list[str], expected: str) -> None:
    """Schemas are files or written out, grammars are files, choices are repeated."""
    (tmp_path / "schema.json").write_text('{"type": "boolean"}')
    (tmp_path / "words.lark").write_text('start: "ab"~2')
    arguments = [*CLFORGE, "generate", "--target", address, "-p", "x", "--max-tokens", "50", *options]
    ended = subprocess.run(arguments, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=True)
    assert re.fullmatch(expected, ended.stdout.strip())


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    """One line names the option and the file; exit code 2."""
    arguments = [*CLFORGE, "generate", "-p", "x", "--grammar", "absent.lark"]
    ended = subprocess.run(arguments, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
    assert (ended.returncode, "--grammar is absent.lark" in ended.stderr) == (2, True)
