"""`clforge serve --workers`: one engine, one address, several tokenizers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from clforge.v1 import tokenizer_pb2
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from tests.gguf_builder import tiny_llama
from tests.integration.served import served, start

NUM_CONNECTIONS = 12


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model."""
    path = tmp_path / "tiny.gguf"
    tiny_llama(path, seed=1)
    return path


def test_every_connection_gets_the_same_answer(model: Path) -> None:
    """Whichever worker has it; the server drains with exit code 0."""
    request = tokenizer_pb2.CompleteRequest(prompt=tokenizer_pb2.Prompt(text="the rain"))
    request.params.sampling.seed = 7
    request.params.stopping.max_tokens = 8
    request.params.stopping.ignore_eos = True

    async def ask(address: str) -> set[str]:
        async with contextlib.AsyncExitStack() as stack:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
                for _ in range(NUM_CONNECTIONS)
            ]
            answers = await asyncio.gather(*(TokenizerServiceStub(channel).Complete(request) for channel in channels))
            return {answer.choices[0].text for answer in answers}

    with served(model, "--workers", "2") as address:
        assert len(asyncio.run(ask(address))) == 1


def test_workers_that_cannot_be_reached_are_refused_in_one_line(model: Path) -> None:
    """A port in use ends `serve` with exit code 2 and what to do."""
    with served(model) as address:
        second = start(model, "--workers", "2", "--grpc", address)
        out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (2, "")
    assert [line for line in err.splitlines() if "already in use" in line] == err.splitlines()
