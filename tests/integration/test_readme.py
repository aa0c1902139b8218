"""The README's commands and its program, as they are printed there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import process
from tests.integration.served import address_of, environment

_README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _README, re.DOTALL | re.MULTILINE)


_COMMANDS = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith("clforge ")]


@pytest.mark.parametrize("command", [command for command in _COMMANDS if not command.startswith("clforge serve")])
def test_each_command_works_as_printed(command: str) -> None:
    """In a shell with the virtual environment's folder on its path, whether or not a server runs."""
    variables = environment()
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=variables, cwd="/", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_program_prints_a_text() -> None:
    """The README's one Python program, at a server that is started as the README says, but for its port."""
    assert any(command.startswith("clforge serve ") for command in _COMMANDS)
    [program] = _blocks("python")
    assert "127.0.0.1:50051" in program
    with process("serve", "--grpc", "127.0.0.1:0") as server:
        program = program.replace("127.0.0.1:50051", address_of(server))
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd="/", timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
