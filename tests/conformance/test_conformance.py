"""One table of cases, which every client runs against the same real server with the same outcome."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.runners import LANGUAGES, Language, running
from tests.conformance.server import Server, served
from tests.tools import MissingTool

_CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "cases.json").read_text(encoding="utf-8"))
_GREEDY = {"temperature": 0.0, "ignore_eos": True}

# What the case does not fix: how far a request had come when it was ended from outside.
_LEFT_OPEN = {"CANCELLED", "DEADLINE", None}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The server of all cases and languages."""
    with served() as running_server:
        yield running_server


@pytest.fixture(scope="module")
def language_of(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Language]]:
    """Each language's runner, started when it is first needed."""
    started: dict[str, Language] = {}
    with contextlib.ExitStack() as stack:

        def find(name: str) -> Language:
            if name not in started:
                try:
                    runner = stack.enter_context(running(name, server.address, tmp_path_factory.mktemp(name)))
                    started[name] = Language(runner)
                except MissingTool as reason:
                    started[name] = Language(None, str(reason))
            return started[name]

        yield find


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """What the first language got, by case."""
    return {}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["name"])
def test_every_client_sees_the_same(
    case: dict[str, Any],
    language: str,
    server: Server,
    language_of: Callable[[str], Language],
    outcomes: dict[str, dict[str, Any]],
    record_property: Callable[[str, object], None],
) -> None:
    """What the case expects, what the first language got, and nothing left at the server."""
    record_property("conformance", (case["name"], language))
    runner, missing = language_of(language)
    if runner is None:
        pytest.skip(missing)
    outcome = runner.run(_completed(case), server.serve)
    _check(case["expect"], outcome)
    fixed = {label: _fixed(result) for label, result in outcome.items()}
    assert fixed == outcomes.setdefault(case["name"], fixed)
    server.until_idle()


def _completed(case: dict[str, Any]) -> dict[str, Any]:
    """The case with its texts written out, and its parameters on top of those that make a request greedy and long."""
    steps = [
        {**step, "text": step["text"] * step.get("repeat", 1), "params": {**_GREEDY, **step.get("params", {})}}
        if "text" in step
        else step
        for step in case["steps"]
    ]
    return {**case, "steps": steps}


def _check(expected: dict[str, dict[str, Any]], outcome: dict[str, dict[str, Any]]) -> None:
    assert set(expected) - {"*"} <= set(outcome), outcome
    for label, result in outcome.items():
        assert label in expected or "*" in expected, f"{label} was not expected: {result}"
        wanted = expected.get(label, expected.get("*", {}))
        assert {name: result.get(name) for name in wanted} == wanted, f"{label}: {result}"


def _fixed(result: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in each language; a detail that is not there may be left out."""
    is_open = result.get("end", "") in _LEFT_OPEN or result.get("code") == "CONNECTION_LOST"
    left_out = {"num_tokens", "text"} if is_open else set()
    return {name: value for name, value in result.items() if name not in left_out and value not in (None, False)}
