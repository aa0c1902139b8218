"""Several processes on one port: one ready line, one way to end, and what the death of one means."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from service_common.addresses import parse_address, reserved
from service_common.errors import ConfigError
from service_common.health import Health
from service_common.metrics import metrics_addresses
from tests.integration.test_observability import scrape
from tests.prometheus import samples
from tests.tokenizer_service.fake_engine import FakeEngine, byte_tokens, tokenizer_gguf
from tests.tokenizer_service.test_tokenizer_process import tokenizer_process
from tests.tokenizer_service.tokenizer_world import TEXT, Client, plain
from tokenizer_service.encode_cache import EncodeCache
from tokenizer_service.metrics import TokenizerMetrics
from tokenizer_service.process import Readiness
from tokenizer_service.server import SERVICE
from tokenizer_service.workers import MAX_REPLACEMENTS

NUM_WORKERS = 2
SECONDS = 20.0  # far more than anything here takes, for machines that are busy with something else


@contextlib.asynccontextmanager
async def engine_at(folder: Path, data: bytes | None = None) -> AsyncIterator[FakeEngine]:
    """An engine that says TEXT."""
    engine = FakeEngine(lambda submit, choice: byte_tokens(TEXT), data)
    await engine.start(f"unix:{folder}/engine")
    yield engine
    await engine.stop()


@contextlib.asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """The parent of NUM_WORKERS workers that are ready, and the address."""
    arguments = ("--engine", f"unix:{folder}/engine", "--workers", str(NUM_WORKERS), "--grpc", "127.0.0.1:0", *options)
    with tokenizer_process(*arguments) as parent:
        assert parent.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(parent.stdout.readline), SECONDS)
        assert line.startswith("ready 127.0.0.1:"), (line, parent.stderr.read() if parent.stderr else "")
        yield parent, line.split()[1]


async def ended(parent: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, and what it said after its ready line."""
    out, err = await asyncio.wait_for(asyncio.to_thread(parent.communicate), SECONDS)
    return parent.returncode, out, err


def workers_of(parent: subprocess.Popen[str]) -> list[int]:
    """Process ids of its children."""
    return [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]


async def until(condition: Any) -> None:
    """Waits for what other processes do."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Any]:
    """A stub with a connection of its own."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield TokenizerServiceStub(channel)


def free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody listens on."""
    with reserved(parse_address("127.0.0.1:0", "--x")) as first, contextlib.ExitStack() as others:
        try:
            for port in range(first.port + 1, first.port + count):
                others.enter_context(reserved(parse_address(f"127.0.0.1:{port}", "--x")))
        except ConfigError:
            return free_ports(count)
        return first.port


async def test_connections_are_shared_out_among_workers_with_metrics_of_their_own(tmp_path: Path) -> None:
    """One ready line; each worker has its link to the engine; of many connections each gets some; SIGTERM drains."""
    port = free_ports(NUM_WORKERS)
    async with engine_at(tmp_path), serving(tmp_path, "--metrics", f"127.0.0.1:{port}") as (parent, address):
        for _ in range(24):
            async with connected(address) as stub:
                assert (await stub.Complete(plain())).choices[0].text == TEXT
        addresses = [f"127.0.0.1:{port + index}" for index in range(NUM_WORKERS)]
        seen = [samples(await asyncio.to_thread(scrape, each)) for each in addresses]
        assert [metrics["clforge_tokenizer_ready"] for metrics in seen] == [1] * NUM_WORKERS
        served = [metrics['clforge_tokenizer_request_success_total{finished_reason="stop"}'] for metrics in seen]
        assert sum(served) == 24
        assert min(served) > 0
        workers = workers_of(parent)
        parent.send_signal(signal.SIGTERM)
        code, out, _ = await ended(parent)
        assert (code, out) == (0, "")
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


async def test_the_port_is_refused_to_any_other_server(tmp_path: Path) -> None:
    """To one process and to several, in one line each: nobody takes over a share of the connections (D14)."""
    async with engine_at(tmp_path), serving(tmp_path) as (_, address):
        for workers in ("1", "2"):
            with tokenizer_process("--grpc", address, "--workers", workers) as other:
                code, _, err = await ended(other)
            assert (code, err.count("\n")) == (2, 1)
            assert f"address already in use: {address}" in err


async def test_drain_lets_every_worker_finish_what_it_serves(tmp_path: Path) -> None:
    """Requests of several connections end in order after SIGTERM, whichever worker has them (CLI-3)."""
    async with (
        engine_at(tmp_path) as engine,
        serving(tmp_path) as (parent, address),
        contextlib.AsyncExitStack() as stack,
    ):
        engine.gate.clear()
        clients = [Client(await stack.enter_async_context(connected(address))) for _ in range(8)]
        for client in clients:
            await client.submit(1)
        await until(lambda: len(engine.live) == len(clients))
        parent.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert parent.poll() is None
        engine.gate.set()
        for client in clients:
            assert (await client.until_finished(1)).texts[0] == TEXT
        assert (await ended(parent))[0] == 0


async def test_worker_that_dies_is_replaced_and_the_other_serves_on(tmp_path: Path) -> None:
    """Its requests are lost with it, its neighbour's are not; its end is logged; nothing is announced twice."""
    async with (
        engine_at(tmp_path) as engine,
        serving(tmp_path) as (parent, address),
        contextlib.AsyncExitStack() as stack,
    ):
        engine.gate.clear()
        clients = [Client(await stack.enter_async_context(connected(address))) for _ in range(12)]
        for client in clients:
            await client.submit(1)
        await until(lambda: len(engine.live) == len(clients))
        victim, survivor = workers_of(parent)
        subprocess.run(["kill", "-KILL", str(victim)], check=True)
        await until(lambda: 0 < len(engine.live) < len(clients))
        await until(lambda: len(workers_of(parent)) == NUM_WORKERS and victim not in workers_of(parent))
        assert survivor in workers_of(parent)
        engine.gate.set()
        results = await asyncio.gather(*(client.until_finished(1) for client in clients), return_exceptions=True)
        finished = [result for result in results if not isinstance(result, BaseException)]
        assert 0 < len(finished) < len(clients)
        assert all(heard.texts[0] == TEXT for heard in finished)
        async with connected(address) as stub:
            assert (await stub.Complete(plain(), wait_for_ready=True)).choices[0].text == TEXT
        parent.send_signal(signal.SIGTERM)
        code, out, err = await ended(parent)
    assert (code, out) == (0, "")
    assert str(victim) in next(line for line in err.splitlines() if "SIGKILL" in line)


async def test_workers_that_die_again_and_again_end_the_service(tmp_path: Path) -> None:
    """After MAX_REPLACEMENTS within the time the exit code is 1, and no worker is left."""
    async with engine_at(tmp_path), serving(tmp_path) as (parent, _):
        killed: set[int] = set()
        while parent.poll() is None and len(killed) <= MAX_REPLACEMENTS:
            for pid in workers_of(parent)[:1]:
                subprocess.run(["kill", "-KILL", str(pid)], check=False, stderr=subprocess.DEVNULL)
                killed.add(pid)
                await until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
        code, out, err = await ended(parent)
    assert (code, out) == (1, "")
    assert len(killed) == MAX_REPLACEMENTS + 1
    assert "as too many have" in err


async def test_killed_parent_takes_its_workers_along(tmp_path: Path) -> None:
    """SIGKILL leaves it no chance: the workers watch it themselves, and the port is free again."""
    async with engine_at(tmp_path), serving(tmp_path) as (parent, address):
        workers = workers_of(parent)
        parent.kill()
        await until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])
        with reserved(parse_address(address, "--grpc")):
            pass


async def test_what_no_worker_can_serve_is_said_once(tmp_path: Path) -> None:
    """A vocabulary of an unknown kind: one line that names the field, exit code 2."""
    async with engine_at(tmp_path, tokenizer_gguf(model="crystal-ball")):
        options = ("--engine", f"unix:{tmp_path}/engine", "--workers", "3", "--grpc", "127.0.0.1:0")
        with tokenizer_process(*options) as parent:
            code, out, err = await ended(parent)
    assert (code, out) == (2, "")
    assert err.count("crystal-ball") == 1
    assert "Traceback" not in err


def test_a_unix_socket_has_one_worker() -> None:
    """More are refused in a line that tells the remedy."""
    with tokenizer_process("--grpc", "unix:/tmp/x/y", "--workers", "2") as parent:
        _, err = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 2
    assert err.startswith("clforge: --workers: 2 processes cannot share unix:/tmp/x/y")
    assert err.count("\n") == 1


async def test_worker_is_not_ready_before_all_are() -> None:
    """Its link may be up: health says so only once it has been told to open, and then follows the link."""
    health = Health(SERVICE)
    ready = Readiness(health, TokenizerMetrics(lambda: health.ready, EncodeCache(0)), is_open=False)
    ready(True)
    assert not health.ready
    ready.open()
    assert health.ready
    ready(False)
    assert not health.ready


def test_workers_metrics_ports_follow_one_another() -> None:
    """The first has the one that was given; ports that cannot be are refused."""
    addresses = metrics_addresses("127.0.0.1:9465", "--metrics", 3, insecure=False)
    assert list(map(str, addresses)) == ["127.0.0.1:9465", "127.0.0.1:9466", "127.0.0.1:9467"]
    assert [address.port for address in metrics_addresses("127.0.0.1:0", "--metrics", 2, insecure=False)] == [0, 0]
    assert metrics_addresses(None, "--metrics", 2, insecure=False) == []
    with pytest.raises(ConfigError, match="--metrics: 2 processes need the ports from 65535 on"):
        metrics_addresses("127.0.0.1:65535", "--metrics", 2, insecure=False)
