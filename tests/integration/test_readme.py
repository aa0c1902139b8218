"""Commands and programs of the documents, run as they are printed, but for the server's port."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.processes import process
from tests.integration.served import address_of, environment
from tests.tools import ROOT, MissingTool, descriptor_set, grpcurl, need, node_modules

_DOCUMENTS = ("README.md", "clients/go/README.md", "docs/clients.md")
_ADDRESS = "127.0.0.1:50051"  # in the documents
_SECONDS = 120.0  # go compiles


class Example(NamedTuple):
    """A block of a document."""

    document: str
    language: str
    text: str


def _examples(language: str) -> list[Example]:
    return [
        Example(document, language, text)
        for document in _DOCUMENTS
        for text in re.findall(
            rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
    ]


def _commands(program: str) -> list[str]:
    """Shell commands that begin with a program, lines that go on in the next one joined."""
    lines = [line for block in _examples("sh") for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


_CLFORGE = _commands("clforge")
_PROGRAMS = [example for language in ("python", "go", "js") for example in _examples(language)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server that is started as the README says, but for its port."""
    with process("serve", "--grpc", "127.0.0.1:0") as running:
        yield address_of(running)


def _run(command: str | list[str], folder: Path | str = "/") -> str:
    """What a command prints; it must succeed."""
    variables = environment()
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        env=variables,
        cwd=folder,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [command for command in _CLFORGE if not command.startswith("clforge serve")])
def test_each_command_works_as_printed(command: str) -> None:
    """In a shell with the virtual environment's folder on its path, whether or not a server runs."""
    assert _run(command)


def _python(program: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", program]


def _go(program: str, folder: Path) -> list[str]:
    need("go")
    (folder / "main.go").write_text(program, encoding="utf-8")
    return ["go", "-C", str(ROOT / "clients" / "go"), "run", str(folder / "main.go")]


def _js(program: str, folder: Path) -> list[str]:
    (folder / "node_modules").symlink_to(node_modules())
    descriptor_set(folder)
    (folder / "main.mjs").write_text(program, encoding="utf-8")
    return ["node", "main.mjs"]


_LANGUAGES: dict[str, Callable[[str, Path], list[str]]] = {"python": _python, "go": _go, "js": _js}


@pytest.mark.parametrize("example", _PROGRAMS, ids=lambda example: f"{example.document}-{example.language}")
def test_each_program_prints_a_text(example: Example, server: str, tmp_path: Path) -> None:
    """Each is whole: it runs alone."""
    try:
        command = _LANGUAGES[example.language](example.text.replace(_ADDRESS, server), tmp_path)
    except MissingTool as reason:
        pytest.skip(str(reason))
    assert len(_run(command, tmp_path)) > 5


@pytest.mark.parametrize("command", _commands("grpcurl"))
def test_grpcurl_needs_no_protos(command: str, server: str) -> None:
    """The server's reflection tells it all."""
    try:
        program = grpcurl()
    except MissingTool as reason:
        pytest.skip(str(reason))
    output = _run(command.replace("grpcurl", str(program), 1).replace(_ADDRESS, server))
    assert "rpc Generate " in output or '"delta"' in output


def test_every_way_in_is_shown() -> None:
    """The README has the SDK, the sync client, the fake server, bare stubs, Go, grpcurl and the command line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = ("from clforge import Client", "clforge.sync", "clforge.testing", "TokenizerServiceStub", "clforge.New(")
    assert [words for words in shown if words not in text] == []
    assert _commands("grpcurl")
    assert any(command.startswith("clforge serve ") for command in _CLFORGE)
