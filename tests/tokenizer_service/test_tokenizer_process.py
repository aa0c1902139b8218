"""The tokenizer service as a process: ready line, drain, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import (
    FINISH_REASON_CANCELLED,
)
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from tests.tokenizer_service.chat_builder import chat
from tests.tokenizer_service.fake_engine import FakeEngine, byte_tokens, tokenizer_gguf
from tests.tokenizer_service.test_chat_template import LOOP
from tests.tokenizer_service.tokenizer_world import (
    TEXT,
    Client,
    failure,
    plain,
    rpc_failure,
    world,
)


async def test_drain_finishes_work_and_refuses_new(tmp_path: Path) -> None:
    """In flight finishes, a new submit is UNAVAILABLE in-band, a new RPC is UNAVAILABLE, then all is idle (CLI-3)."""
    async with world(tmp_path) as service:
        service.engine.gate.clear()
        client, idle_client = Client(service.stub), Client(service.stub)
        await client.submit(1)
        await service.until(lambda: len(service.engine.live) == 1)
        service.sessions.refuse_new()
        await client.submit(2)
        assert failure(await client.until_finished(2)).reason == "DRAINING"
        assert (await rpc_failure(service.stub.Complete(plain()))).reason == "DRAINING"
        assert (await rpc_failure(idle_client.listen())).reason == "DRAINING"
        service.engine.gate.set()
        assert (await client.until_finished(1)).texts[0] == TEXT
        assert (await rpc_failure(client.listen())).reason == "DRAINING"
        await asyncio.wait_for(service.sessions.wait_idle(), 1)


async def test_end_of_the_grace_cancels(tmp_path: Path) -> None:
    """cancel_all ends every request with a terminal update, and then nothing is left."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.submit(1, initial_credit=1)
        await client.until_text(1, 1)
        service.sessions.refuse_new()
        service.sessions.cancel_all()
        assert (await client.until_finished(1)).finished[0].reason == FINISH_REASON_CANCELLED
        await asyncio.wait_for(service.sessions.wait_idle(), 1)


@contextlib.contextmanager
def tokenizer_process(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The service as a process of its own; killed at the end of the block, so that a test that fails does not hang."""
    command = [sys.executable, "-P", "-m", "tokenizer_service", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


async def test_process_says_ready_and_drains_on_sigterm(tmp_path: Path) -> None:
    """One line on standard output when the first request can be served; SIGTERM ends it with 0 (CLI-3, CLI-4)."""
    engine = FakeEngine(lambda submit, choice: byte_tokens(TEXT))
    await engine.start(f"unix:{tmp_path}/engine")
    with tokenizer_process("--engine", f"unix:{tmp_path}/engine", "--grpc", f"unix:{tmp_path}/door") as child:
        assert child.stdout is not None
        assert await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), 5) == f"ready unix:{tmp_path}/door\n"
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, 5) == 0
        assert child.stdout.read() == ""
    await engine.stop()


async def _renderer_pid(service: int) -> int:
    """The process that renders for the service with this id, once it is there."""
    while True:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == service and b"template_process" in (folder / "cmdline").read_bytes():
                    return int(folder.name)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("template", ["{{ messages[0].content }}", LOOP])
async def test_end_of_the_process_leaves_no_renderer(tmp_path: Path, number: signal.Signals, template: str) -> None:
    """Neither an idle one nor one that burns outlives its service, however that ends."""
    engine = FakeEngine(lambda submit, choice: byte_tokens(TEXT), tokenizer_gguf(chat_template=template))
    await engine.start(f"unix:{tmp_path}/engine")
    options = ("--engine", f"unix:{tmp_path}/engine", "--grpc", f"unix:{tmp_path}/door", "--drain-seconds", "0")
    with tokenizer_process(*options) as child:
        assert child.stdout is not None
        await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), 5)
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/door") as channel:
            rendering = TokenizerServiceStub(channel).RenderChat(pb.RenderChatRequest(chat=chat("hi")))
            renderer = await asyncio.wait_for(_renderer_pid(child.pid), 5)
            if template != LOOP:
                assert (await rendering).text == "hi"
            child.send_signal(number)
            code = await asyncio.to_thread(child.wait, 10)
            rendering.cancel()
    assert code == (0 if number == signal.SIGTERM else -number)
    async with asyncio.timeout(5):
        while Path(f"/proc/{renderer}").exists():
            await asyncio.sleep(0.02)
    await engine.stop()


async def test_process_ends_when_the_vocabulary_cannot_be_used(tmp_path: Path) -> None:
    """An engine whose model has an unknown kind of vocabulary: exit code 2, and a last line that names the field."""
    engine = FakeEngine(lambda submit, choice: [], tokenizer_gguf(model="crystal-ball"))
    await engine.start(f"unix:{tmp_path}/engine")
    with tokenizer_process("--engine", f"unix:{tmp_path}/engine", "--grpc", f"unix:{tmp_path}/door") as child:
        _, errors = await asyncio.to_thread(child.communicate, timeout=10)
    assert child.returncode == 2
    assert errors.splitlines()[-1].startswith("clforge: the engine's tokenizer: tokenizer.ggml.model is crystal-ball")
    assert "Traceback" not in errors
    await engine.stop()


def test_process_refuses_what_it_cannot_serve() -> None:
    """A port in use and an exposed address each give one line and exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cases = {address: f"address already in use: {address}", "0.0.0.0:1": "--insecure"}
        for option, expected in cases.items():
            with tokenizer_process("--grpc", option) as child:
                _, errors = child.communicate(timeout=10)
            assert child.returncode == 2
            assert expected in errors
            assert errors.count("\n") == 1
