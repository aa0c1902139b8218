"""Processes killed at every moment: what they held is freed, others go on to the same bits, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clforge import Accepted, Client, Delta
from clforge.v1 import generation_pb2 as pb
from clforge.v1.tokenizer_pb2 import GenerateTextRequest, Prompt, TextSubmit
from tests.gguf_builder import tiny_llama
from tests.integration import killed_client
from tests.integration.processes import Processes, Stubs, process, two_processes
from tests.integration.served import address_of, start

FREED_SECONDS = 1.0  # a step and a round trip are some milliseconds; this allows for a busy machine
MAX_LIVE_REQUESTS = 6  # few, so that a request that the tokenizer never let go of would soon be missed
STATES = {pb.REQUEST_STATE_PAUSED, pb.REQUEST_STATE_DECODE, pb.REQUEST_STATE_PREFILL, pb.REQUEST_STATE_QUEUED}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a long context, so that requests live long enough to be killed."""
    path = tmp_path_factory.mktemp("kill") / "tiny.gguf"
    tiny_llama(path, seed=11, context_length=16384)
    return path


@pytest.fixture(scope="module")
def processes(model: Path) -> Iterator[Processes]:
    """Both services, with three sequences at once and a prompt token a step."""
    options = ("--max-num-seqs", "3", "--max-prefill-chunk", "1", "--kv-cache-bytes", str(16 << 20))
    with two_processes(model, *options, tokenizer_options=("--max-live-requests", str(MAX_LIVE_REQUESTS))) as both:
        yield both


class Bystander:
    """A request that runs beside what is killed."""

    def __init__(self, client: Client) -> None:
        self._events = client.generate("the rain", max_tokens=6000, seed=7, ignore_eos=True, logprobs=2)
        self._deltas: list[Delta] = []
        self.global_id = ""

    async def start(self) -> None:
        """Returns when it generates."""
        async for event in self._events:
            if isinstance(event, Delta):
                self._deltas.append(event)
                return
            if isinstance(event, Accepted):
                self.global_id = event.global_id

    async def finish(self) -> list[tuple[int, float]]:
        """Its ids and log-probabilities."""
        self._deltas += [event async for event in self._events if isinstance(event, Delta)]
        return [(each.chosen.token_id, each.chosen.logprob) for delta in self._deltas for each in delta.logprobs]


@pytest.fixture(scope="module")
def alone(processes: Processes) -> list[tuple[int, float]]:
    """What the bystander gives when nothing else runs."""

    async def run() -> list[tuple[int, float]]:
        async with Client(processes.address) as client:
            return await Bystander(client).finish()

    return asyncio.run(run())


async def _until_in_all_states(stubs: Stubs, global_ids: set[str]) -> None:
    async with asyncio.timeout(5):
        while {info.state for info in await stubs.requests() if info.global_id in global_ids} != STATES:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("door", ["engine", "tokenizer"])
def test_a_killed_client_frees_what_it_held_in_every_state(
    processes: Processes, alone: list[tuple[int, float]], door: str
) -> None:
    """SIGKILL while queued, in prefill, in decode and paused: all is free again, a neighbour's bits stay (KV-2)."""
    address = processes.engine_address if door == "engine" else processes.address

    async def run() -> list[tuple[int, float]]:
        async with processes.stubs() as stubs, Client(processes.address) as client:
            bystander = Bystander(client)
            await bystander.start()
            victim = await asyncio.create_subprocess_exec(
                *(sys.executable, killed_client.__file__, door, address), stdout=subprocess.PIPE
            )
            assert victim.stdout is not None
            global_ids = {(await victim.stdout.readline()).decode().strip() for _ in range(killed_client.NUM_REQUESTS)}
            await _until_in_all_states(stubs, global_ids)
            victim.kill()
            await victim.wait()
            assert await stubs.until_live(bystander.global_id) < FREED_SECONDS
            result = await bystander.finish()
            await stubs.until_live()
            return result

    assert asyncio.run(run()) == alone


def test_the_tokenizer_lets_go_of_the_requests_of_killed_clients(processes: Processes) -> None:
    """After more killed requests than it admits at once it still admits as many as before (KV-2)."""

    async def run() -> None:
        async with processes.stubs() as stubs:
            for _ in range(3):
                calls: list[Any] = [stubs.tokenizer.GenerateText() for _ in range(MAX_LIVE_REQUESTS)]
                for call in calls:
                    await call.write(GenerateTextRequest(submit=_text_submit(1, initial_credit=0)))
                    response = await call.read()
                    assert response.updates[0].HasField("accepted"), response
                for call in calls:
                    call.cancel()
                assert await stubs.until_live() < FREED_SECONDS

    asyncio.run(run())


def test_a_killed_tokenizer_frees_what_it_held(processes: Processes, alone: list[tuple[int, float]]) -> None:
    """SIGKILL to one of two tokenizers: the engine lets go of all of its requests, and of none of the other's."""

    async def run() -> list[tuple[int, float]]:
        with process("tokenizer", "--engine", processes.engine_address, "--grpc", "127.0.0.1:0") as second:
            async with processes.stubs() as stubs, Client(processes.address) as client:
                bystander = Bystander(client)
                await bystander.start()
                async with Client(address_of(second)) as other, other.session() as session:
                    for _ in range(8):
                        await session.submit("the rain", ignore_eos=True)
                    while len(await stubs.requests()) < 9:
                        await asyncio.sleep(0.01)
                    second.kill()
                    assert await stubs.until_live(bystander.global_id) < FREED_SECONDS
                return await bystander.finish()

    assert asyncio.run(run()) == alone


def _text_submit(request_id: int, **params: Any) -> TextSubmit:
    submit = TextSubmit(request_id=request_id, prompt=Prompt(text="the rain"), params=pb.GenerationParams(**params))
    submit.params.stopping.ignore_eos = True
    return submit


def _children(parent: subprocess.Popen[str]) -> dict[str, int]:
    """Process ids of the services that `clforge serve` started."""
    pids = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="ascii").split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8") for pid in pids}
    names = ("engine_service", "tokenizer_service")
    return {name: int(pid) for pid, command in commands.items() for name in names if f"\0{name}\0" in command}


async def _end_mid_flight(
    server: subprocess.Popen[str], max_tokens: int, signals: list[tuple[str, int]]
) -> pb.Finished:
    """How two requests end, both alike, while `signals` go to the named processes in turn."""
    address = address_of(server)
    pids = _children(server) | {"serve": server.pid}
    async with Processes(server, server, address, address).stubs() as stubs:
        call: Any = stubs.tokenizer.GenerateText()
        for request_id in (1, 2):
            submit = _text_submit(request_id)
            submit.params.stopping.max_tokens = max_tokens
            await call.write(GenerateTextRequest(submit=submit))
        ends: list[pb.Finished] = []
        waiting = {1, 2}
        async for response in call:
            ends += [update.finished for update in response.updates if update.HasField("finished")]
            waiting -= {update.request_id for update in response.updates if update.HasField("delta")}
            if not waiting and signals:
                name, number = signals.pop(0)
                os.kill(pids[name], number)
            if len(ends) == 2:
                break
    assert ends[0].reason == ends[1].reason
    assert server.wait(20) is not None
    assert not [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
    return ends[0]


@pytest.mark.parametrize(
    ("signals", "max_tokens", "reason", "code", "exit_code"),
    [
        ([("engine_service", signal.SIGKILL)], 12000, pb.FINISH_REASON_ERROR, 14, 1),
        ([("serve", signal.SIGTERM)], 500, pb.FINISH_REASON_LENGTH, 0, 0),
        ([("serve", signal.SIGTERM)] * 2, 12000, pb.FINISH_REASON_CANCELLED, 0, 0),
    ],
)
def test_serve_ends_in_order_whatever_is_in_flight(
    model: Path, signals: list[tuple[str, int]], max_tokens: int, reason: int, code: int, exit_code: int
) -> None:
    """A killed engine is UNAVAILABLE in-band and exit code 1; SIGTERM drains; a second one cancels (CLI-3)."""
    server = start(model)
    try:
        end = asyncio.run(_end_mid_flight(server, max_tokens, list(signals)))
        assert (end.reason, end.error.code) == (reason, code)
        assert server.returncode == exit_code
    finally:
        server.kill()
        server.communicate()
