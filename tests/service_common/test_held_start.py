"""A child that is held: imported, and nothing more, before it is let go."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from service_common.child import Child

SERVICE = """
import sys
from pathlib import Path
Path("imported").touch()
def main():
    print("ready", *sys.argv[1:], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that announces its arguments; it notes in the current folder that it was imported."""
    package = tmp_path / "held_service"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVICE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}:{Path.cwd() / 'clients/python'}")
    monkeypatch.chdir(tmp_path)
    return package.name


async def until_imported() -> None:
    """Waits for the service's note."""
    while not Path("imported").exists():
        await asyncio.sleep(0.01)


@pytest.mark.timeout(60)
async def test_held_service_begins_when_it_is_released(service: str) -> None:
    """It is imported without a word, and its arguments are its own when it runs."""
    child = await Child.start("held", service, ["--an", "option"], held=True)
    await until_imported()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.announced(), 0.2)
    child.release()
    assert await child.announced() == "--an option"
    assert await child.stop(10)


@pytest.mark.timeout(60)
async def test_held_service_can_be_stopped(service: str) -> None:
    """A start that is given up does not wait for it."""
    child = await Child.start("held", service, [], held=True)
    await until_imported()
    assert await child.stop(10)


@pytest.mark.timeout(60)
def test_held_service_goes_with_who_started_it(service: str) -> None:
    """Where standard input ends first, it ends without having begun, and without a word."""
    command = [sys.executable, "-P", "-m", "service_common.held_start", service]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert Path("imported").exists()
