"""A whole server for tests: `clforge serve` as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service_common.options import PARENT_PID_VARIABLE

CLFORGE = (str(Path(sys.executable).with_name("clforge")),)


def environment() -> dict[str, str]:
    """The test's own environment, less what would configure the server."""
    return {name: value for name, value in os.environ.items() if name != PARENT_PID_VARIABLE}


def start(model: Path, *options: str) -> subprocess.Popen[str]:
    """`clforge serve` on a free port, its output piped."""
    arguments = [*CLFORGE, "serve", "--model", str(model), "--grpc", "127.0.0.1:0", "--log-level", "warning", *options]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd="/"
    )


def address_of(process: subprocess.Popen[str]) -> str:
    """Waits for the one line that says where it serves; fails with what it said instead."""
    assert process.stdout is not None
    assert process.stderr is not None
    words = process.stdout.readline().split()
    assert words[:1] == ["ready"], f"exit code {process.wait()}: {process.stderr.read()}"
    return words[1]


@contextmanager
def served(model: Path, *options: str) -> Iterator[str]:
    """The address of a server that drains at the end of the block; its exit code must be 0."""
    process = start(model, *options)
    try:
        yield address_of(process)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
