"""The command line at a real server: what the README's table shows, and requests seen and cancelled from outside."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clforge import Accepted, Client, Finished, FinishReason, RequestState
from engine_service.bundled import BUNDLED_MODEL
from tests.integration.served import CLFORGE, environment, served

_README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_EXAMPLES = re.findall(r"^\| `.*? \| `clforge (.*)` \|$", _README.partition("## Commands")[2], re.MULTILINE)
_AT_A_SERVER = ("generate", "chat", "status", "cancel", "top")
_RUN_ELSEWHERE = ("serve", "tokenizer", "bench")  # they do not end, or take long


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the bundled model."""
    with served(BUNDLED_MODEL) as address:
        yield address


def clforge(address: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command at the server."""
    return subprocess.run(
        [*CLFORGE, *arguments, "--target", address],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("example", [each for each in _EXAMPLES if not each.startswith(_RUN_ELSEWHERE)])
def test_each_example_works_as_printed(example: str, address: str, tmp_path: Path) -> None:
    """In a shell, in a folder that has the files named; but for the server's address, which is free here."""
    shutil.copyfile(BUNDLED_MODEL, tmp_path / "model.gguf")
    (tmp_path / "story.txt").write_text("Once upon a time")
    (tmp_path / "ids.txt").write_text("1 2 3")
    command = f"{CLFORGE[0]} {example}"
    if example.startswith(_AT_A_SERVER):
        command += f" --target {address}"
    done = subprocess.run(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or example.startswith("chat")


def test_a_conversation_on_a_pipe_remembers(address: str) -> None:
    """The second answer knows the first turn."""
    turns = "My name is Ada.\nWhat is 4 + 5?\n/regenerate\n"
    done = clforge(address, "chat", "--temperature", "0", "--max-tokens", "30", stdin=turns)
    assert (done.returncode, done.stderr) == (0, "")
    answers = done.stdout.splitlines()
    assert "9" in answers[-1]
    assert answers[-1] == answers[-2]


async def test_a_request_is_seen_and_cancelled_from_another_process(address: str) -> None:
    """`status` and `top` show it, its reader learns that it was cancelled, and then it is not live any more."""

    async def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(clforge, address, *arguments)

    async with Client(address) as client, client.session(window=2) as session:
        request = await session.submit("Once upon a time", ignore_eos=True, max_tokens=500)
        events = request.events()
        accepted = await anext(events)
        assert isinstance(accepted, Accepted)
        while (info := (await client.list_requests())[0]).state is not RequestState.PAUSED:
            await asyncio.sleep(0.01)
        assert (info.global_id, info.num_generated_tokens) == (accepted.global_id, 2)
        told = json.loads((await command("status", "--json")).stdout)
        assert [each["global_id"] for each in told["requests"]] == [accepted.global_id]
        assert (told["load"]["num_requests_paused"], told["load"]["num_used_blocks"]) == (1, info.num_blocks)
        assert accepted.global_id in (await command("top", "--interval", "0.1")).stdout
        assert (await command("cancel", accepted.global_id)).stdout == f"cancelled {accepted.global_id}\n"
        *_, end = [event async for event in events]
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.CANCELLED
        done = await command("cancel", accepted.global_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no live request" in done.stderr
