"""Commands that are given no model: the bundled one, or for `generate` the server that is there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from engine_service.bundled import BUNDLED_MODEL
from tests.integration.processes import process
from tests.integration.served import CLFORGE, address_of, environment

_GENERATE = ("generate", "--chat", "-p", "What is 47 + 38?", "--temperature", "0")
_AT_ANOTHER_DEFAULT = """
import sys
from clforge import cli
from clforge.cli import connection, server
connection.DEFAULT_TARGET = server.DEFAULT_TARGET = sys.argv.pop(1)
cli.main()
"""


def generate(default_target: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`clforge generate`, with `default_target` in the place of the address that a test cannot have for itself."""
    command = [sys.executable, "-P", "-c", _AT_ANOTHER_DEFAULT, default_target, *_GENERATE, *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd="/", timeout=60, check=False)


@pytest.fixture
def free_address() -> str:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_generate_prefers_the_server_at_the_default_address() -> None:
    """`serve` without a model serves the bundled one, and `generate` uses that server without a word."""
    with process("serve", "--grpc", "127.0.0.1:0") as server:
        done = generate(address_of(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("47 + 38 = 85.")


def test_generate_without_a_server_starts_one_and_says_so(free_address: str) -> None:
    """One line on standard error names address and model; standard output is the answer's events alone."""
    done = generate(free_address, "--json")
    assert done.returncode == 0
    assert done.stderr == f"clforge: no server at {free_address}; starting one with the bundled clforge-tiny\n"
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (events[0]["event"], events[-1]["event"]) == ("accepted", "finished")
    assert "".join(event.get("text", "") for event in events).endswith("47 + 38 = 85.")


def test_options_of_a_private_server_start_one_beside_another() -> None:
    """--threads would mean nothing to a server that runs already, so that one, here deaf, is left alone."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        done = generate(f"127.0.0.1:{deaf.getsockname()[1]}", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("47 + 38 = 85.")


def test_generate_never_replaces_a_server_that_was_named(free_address: str) -> None:
    """An explicit --target that does not answer is exit code 3, whatever listens elsewhere."""
    done = generate(free_address, "--target", free_address)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert f"no server answers at {free_address}" in done.stderr


def test_engine_and_inspect_take_the_bundled_model() -> None:
    """`engine` loads it, `inspect` names the file, and help calls the default by name, wherever the file lies."""
    with process("engine", "--engine", "127.0.0.1:0") as engine:
        assert address_of(engine)
    inspected = json.loads(_output("inspect", "--json"))
    assert (inspected["name"], inspected["path"]) == ("CLForge Tiny", str(BUNDLED_MODEL))
    for command in ("serve", "engine", "generate", "inspect"):
        shown = " ".join(_output(command, "--help").split()).replace("- ", "-")  # lines are broken at hyphens
        assert "the bundled clforge-tiny" in shown
        assert BUNDLED_MODEL.name not in shown


def _output(*arguments: str) -> str:
    return subprocess.run(
        [*CLFORGE, *arguments], capture_output=True, text=True, env=environment(), timeout=60, check=True
    ).stdout
