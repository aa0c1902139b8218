"""Programs that tests use where they are, and make where they can be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NODE = ROOT / "tests" / "conformance" / "node"

_GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
_BIN = ROOT / "build" / "bin"  # ignored by git, and kept from run to run
_BUILD_SECONDS = 240.0


class MissingTool(Exception):
    """A program is not on this machine and cannot be made; str() tells why."""


def need(name: str) -> None:
    """Raises MissingTool unless the program is on the path."""
    if shutil.which(name) is None:
        raise MissingTool(f"{name} is not installed")


def build(command: list[str], folder: Path, *, downloads: bool = False, **variables: str) -> None:
    """Runs a command that must succeed; one that `downloads` raises MissingTool instead, since a network may lack."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        complaint = f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}"
        raise MissingTool(complaint) if downloads else AssertionError(complaint)


def descriptor_set(folder: Path) -> Path:
    """All protos in one file, as docs/clients.md makes it."""
    path = folder / "clforge.binpb"
    build([str(Path(sys.executable).with_name("buf")), "build", "-o", str(path)], ROOT)
    return path


def node_modules() -> Path:
    """What Node's clients need, installed where it is not what the lock file says."""
    need("node")
    need("npm")
    installed = NODE / "node_modules" / ".package-lock.json"  # npm's own copy of the lock file
    if not installed.exists() or installed.stat().st_mtime < (NODE / "package-lock.json").stat().st_mtime:
        build(["npm", "ci", "--omit=dev", "--ignore-scripts"], NODE, downloads=True)
    return NODE / "node_modules"


def grpcurl() -> Path:
    """The grpcurl on the path, else one that go makes (a minute, once)."""
    found = shutil.which("grpcurl", path=f"{os.environ['PATH']}:{_BIN}")
    if found is None:
        need("go")
        build(["go", "install", _GRPCURL], ROOT, downloads=True, GOBIN=str(_BIN), GOFLAGS="")
    return Path(found or _BIN / "grpcurl")
