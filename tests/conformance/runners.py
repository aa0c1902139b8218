"""How each language's runner is built and started, and the lines that the harness exchanges with it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.tools import NODE, ROOT, build, descriptor_set, need, node_modules

_CASE_SECONDS = 60.0  # more is a hang


class Runner:
    """A runner that waits for cases."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, case: dict[str, Any], serve: Callable[[str], None]) -> dict[str, Any]:
        """The outcome of a case; `serve` does what the runner asks for meanwhile."""
        self._say(json.dumps(case))
        while "outcome" not in (answer := self._hear()):
            serve(answer["ask"])
            self._say("done")
        outcome: dict[str, Any] = answer["outcome"]
        return outcome

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=_CASE_SECONDS)
        except queue.Empty:
            self._process.kill()
            raise AssertionError(f"the runner said nothing for {_CASE_SECONDS:g} s") from None
        assert line, f"the runner ended with exit code {self._process.wait()}; its complaint is on standard error"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


@contextmanager
def running(language: str, address: str, folder: Path) -> Iterator[Runner]:
    """The runner of a language, built in `folder`. MissingTool where that cannot be."""
    command = [*_COMMANDS[language](folder), address]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield Runner(process)
    finally:
        process.kill()
        process.wait()


def _python(folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.conformance.python"]


def _go(folder: Path) -> list[str]:
    need("go")
    build(["go", "build", "-o", str(folder / "runner"), "./conformance"], ROOT / "clients" / "go")
    return [str(folder / "runner")]


def _node(folder: Path) -> list[str]:
    """The recipe of docs/clients.md: buf makes a descriptor set, which the language's library reads."""
    node_modules()
    return ["node", str(NODE / "runner.js"), str(descriptor_set(folder))]


_COMMANDS: dict[str, Callable[[Path], list[str]]] = {"python": _python, "go": _go, "node": _node}


class Language(NamedTuple):
    """A language's runner, or why there is none."""

    runner: Runner | None
    missing: str = ""


LANGUAGES = tuple(_COMMANDS)
