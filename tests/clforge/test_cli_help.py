"""What the command line says of itself: every example is one that the parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from clforge.cli import app, exit_codes
from tests.clforge.test_cli import run

_README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_TABLE = re.findall(r"^\| (`.*?`) \| .* \| `(clforge .*)` \|$", _README.partition("## Commands")[2], re.MULTILINE)
_COMMAND: Any = typer.main.get_command(app)


def invocations(line: str) -> Iterator[list[str]]:
    """The arguments of each `clforge` in a shell's line."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    pipeline: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("();<>|&"):
            if pipeline[:1] == ["clforge"]:
                yield pipeline[1:]
            pipeline = []
        else:
            pipeline.append(word)


def examples() -> Iterator[str]:
    """Every example: of the README's table and of each command's help."""
    yield from (line for _, line in _TABLE)
    for command in _COMMAND.commands.values():
        yield from (line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  "))


@pytest.mark.parametrize("line", list(examples()))
def test_each_example_parses(line: str) -> None:
    """By the command's own parser: names of options and kinds of values are right."""
    found = list(invocations(line.replace("\\n", "")))
    assert found
    for name, *arguments in found:
        _COMMAND.commands[name].make_context(name, arguments)


def test_the_readme_has_every_command() -> None:
    """With an example of it."""
    named = [name for names, _ in _TABLE for name in re.findall(r"`(.+?)`", names)]
    assert sorted(named) == sorted(_COMMAND.commands)


def test_chat_takes_whatever_generate_takes() -> None:
    """But for the prompt: sampling and the choice of the server are the same options with the same help."""
    of = {name: {p.name: p.help for p in _COMMAND.commands[name].params} for name in ("generate", "chat")}
    assert set(of["generate"]) - set(of["chat"]) == {"prompt", "chat"}
    differing = {name for name in of["chat"] if of["chat"][name] != of["generate"].get(name)}
    assert differing <= {"system"}


def test_every_command_explains_its_options() -> None:
    """Each option and each argument has a help text; the first sentence of a command's help is a whole one."""
    for name, command in _COMMAND.commands.items():
        assert command.get_short_help_str(limit=80).endswith("."), name
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name}"


async def test_completion_is_set_up_by_an_option_that_help_does_not_list() -> None:
    """The script names the command; help has a line on it in place of two options."""
    shown = await run("--show-completion", "bash")
    assert (shown.code, shown.err) == (exit_codes.OK, "")
    assert "_CLFORGE_COMPLETE" in shown.out
    told = (await run("--help")).out
    assert "--install-completion" in told
    assert "--show-completion" not in told
