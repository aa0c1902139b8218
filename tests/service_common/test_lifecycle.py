"""Draining, signals, exit codes, health and addresses: what a process does from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service_common.addresses import bind, check_exposure, parse_address, parse_target, private_socket_folder
from service_common.errors import ConfigError
from service_common.health import Health
from service_common.lifecycle import Shutdown, serve
from service_common.rpc import make_server

SERVICE = "clforge.v1.TokenizerService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class FakeWork:
    """Work in flight that ends when told to; records the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.idle = asyncio.Event()

    def refuse_new(self) -> None:
        self.calls.append("refuse_new")

    def cancel_all(self) -> None:
        self.calls.append("cancel_all")
        self.idle.set()

    async def wait_idle(self) -> None:
        await self.idle.wait()


class FakeServer:
    """Records when it is stopped."""

    def __init__(self, work: FakeWork) -> None:
        self.work = work

    async def stop(self, grace: float | None) -> None:
        self.work.calls.append("stop")


async def drain(work: FakeWork, shutdown: Shutdown, drain_seconds: float) -> Health:
    """Runs `serve` over fakes until it returns."""
    health = Health(SERVICE)
    health.set_ready(True)
    await serve(FakeServer(work), health, work, shutdown, drain_seconds=drain_seconds)  # type: ignore[arg-type]
    return health


async def test_drain_lets_work_finish() -> None:
    """New work is refused, work in flight is not cancelled, then the server stops (CLI-3)."""
    work, shutdown = FakeWork(), Shutdown()
    shutdown.request("test")
    asyncio.get_running_loop().call_later(0.02, work.idle.set)
    health = await drain(work, shutdown, drain_seconds=10)
    assert work.calls == ["refuse_new", "stop"]
    assert not health.ready


async def test_grace_over_cancels_work() -> None:
    """After the grace what is left is cancelled."""
    work, shutdown = FakeWork(), Shutdown()
    shutdown.request("test")
    await drain(work, shutdown, drain_seconds=0.02)
    assert work.calls == ["refuse_new", "cancel_all", "stop"]


async def test_second_request_is_now() -> None:
    """Asking twice skips the grace; the largest exit code wins."""
    work, shutdown = FakeWork(), Shutdown()
    shutdown.request("the engine failed", exit_code=1)
    asyncio.get_running_loop().call_later(0.02, shutdown.request, "again")
    started = time.monotonic()
    await drain(work, shutdown, drain_seconds=60)
    assert time.monotonic() - started < 1
    assert work.calls == ["refuse_new", "cancel_all", "stop"]
    assert shutdown.exit_code == 1


def script(body: str) -> list[str]:
    """The command line of a child process that runs `body`."""
    return [sys.executable, "-c", textwrap.dedent(body)]


@contextlib.contextmanager
def running(body: str) -> Iterator[subprocess.Popen[str]]:
    """A child process that runs `body`; killed at the end of the block, so that a test that fails does not hang."""
    with subprocess.Popen(script(body), stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


SERVE = """
    import asyncio
    from service_common.health import Health
    from service_common.lifecycle import Shutdown, announce_ready, run_service, serve
    from service_common.rpc import make_server

    class Stuck:
        def refuse_new(self): pass
        def cancel_all(self): print("cancelled", flush=True)
        async def wait_idle(self): await asyncio.sleep({idle})

    async def main():
        server, shutdown = make_server(), Shutdown()
        asyncio.get_running_loop().call_soon(announce_ready, "here")
        await serve(server, Health("s"), Stuck(), shutdown, drain_seconds=60)
        return shutdown.exit_code

    run_service(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_exits_0(number: signal.Signals) -> None:
    """SIGTERM and SIGINT alike end the process in order (CLI-3)."""
    with running(SERVE.format(idle=0)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready here\n"
        child.send_signal(number)
        assert child.wait(10) == 0


def test_second_signal_cancels_without_waiting() -> None:
    """The second signal ends what the first one waits for."""
    with running(SERVE.format(idle=60)) as child:
        assert child.stdout is not None
        for _ in range(2):
            child.stdout.readline()  # "ready", then the log's "shutdown requested"
            child.send_signal(signal.SIGTERM)
        assert "cancelled" in child.stdout.read()
        assert child.wait(10) == 0


@pytest.mark.parametrize(
    ("statement", "code", "message"),
    [
        ("raise ConfigError('--grpc: taken')", 2, "clforge: --grpc: taken\n"),
        ("return 1", 1, ""),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_exit_codes(statement: str, code: int, message: str) -> None:
    """A user's mistake is one line and 2; a service's own code passes through; an interrupt is 130."""
    body = f"""
    from service_common.errors import ConfigError
    from service_common.lifecycle import run_service
    async def main():
        {statement}
    run_service(main)
    """
    result = subprocess.run(script(body), capture_output=True, text=True, timeout=10, check=False)
    assert (result.returncode, result.stderr) == (code, message)


def test_child_ends_when_its_parent_is_killed() -> None:
    """SIGKILL to the parent leaves no process behind."""
    child = (
        "import os, time; from service_common.lifecycle import end_with_parent; end_with_parent(int(os.environ['P'])); "
    )
    child += "print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"""
    import os, subprocess, sys, time
    subprocess.Popen([sys.executable, "-c", {child!r}], env={{**os.environ, "P": str(os.getpid())}})
    time.sleep(60)
    """
    with running(parent) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) != process.pid
        process.kill()
        assert process.stdout.read() == ""  # the pipe's end: the child, its last holder, is gone


async def test_health_follows_readiness_for_all_watchers() -> None:
    """Check and Watch agree; a watcher that leaves does not deafen the others; "" serves throughout (CLI-1)."""
    server, health = make_server(), Health(SERVICE)
    health.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        staying, leaving = stub.Watch(request), stub.Watch(request)
        assert [(await call.read()).status for call in (staying, leaving)] == [NOT_SERVING, NOT_SERVING]
        leaving.cancel()
        health.set_ready(True)
        assert (await staying.read()).status == SERVING
        assert (await stub.Check(request)).status == SERVING
        health.drain()
        health.set_ready(True)
        assert (await staying.read()).status == NOT_SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        staying.cancel()
    await server.stop(None)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:50051", "[::1]:0", "localhost:1", "unix:/tmp/x/engine.sock", "host-1:65535"]
)
def test_address_round_trips(text: str) -> None:
    """What is accepted is also what is printed and dialled."""
    assert str(parse_address(text, "--grpc")) == text
    assert parse_target("dns:///engine:50052", "--engine").target == "dns:///engine:50052"


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "h:65536", "h:1:2", "unix:rel", "unix:/" + "x" * 107, "http://h:1"]
)
def test_bad_address_names_option_and_value(text: str) -> None:
    """A bad address is a ConfigError that begins with the option."""
    with pytest.raises(ConfigError, match=r"^--grpc: "):
        parse_address(text, "--grpc")


def test_plaintext_beyond_this_machine_needs_insecure() -> None:
    """Every address that others can reach is refused unless --insecure is given."""
    for text in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1"):
        with pytest.raises(ConfigError, match="--insecure"):
            check_exposure(parse_address(text, "--grpc"), insecure=False)
        check_exposure(parse_address(text, "--grpc"), insecure=True)
    for text in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"):
        check_exposure(parse_address(text, "--grpc"), insecure=False)


def test_socket_folder_must_be_private(tmp_path: Path) -> None:
    """A missing folder is made with mode 0700; one that others may enter is refused."""
    made = tmp_path / "made" / "s"
    check_exposure(parse_address(f"unix:{made}", "--grpc"), insecure=False)
    assert made.parent.stat().st_mode & 0o777 == 0o700
    made.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        check_exposure(parse_address(f"unix:{made}", "--grpc"), insecure=False)


async def test_taken_port_and_socket_are_refused_in_one_line() -> None:
    """A second server on an address gets a ConfigError, and the first one keeps it."""
    with private_socket_folder() as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = make_server()
        unix = bind(first, parse_address(f"unix:{folder}/s", "--grpc"))
        port = bind(first, parse_address("127.0.0.1:0", "--grpc")).port
        await first.start()
        for text in (f"127.0.0.1:{taken.getsockname()[1]}", f"127.0.0.1:{port}", str(unix)):
            with pytest.raises(ConfigError, match=r"^--grpc: address already in use: .*; choose another with --grpc$"):
                bind(make_server(), parse_address(text, "--grpc"))
        await first.stop(None)
    assert not folder.exists()


async def test_socket_left_by_a_crash_is_taken_over() -> None:
    """A path on which nobody listens any more is no address in use."""
    with private_socket_folder() as folder, socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(f"{folder}/s")
        crashed.close()
        server = make_server()
        bind(server, parse_address(f"unix:{folder}/s", "--grpc"))
        await server.start()
        await server.stop(None)


async def test_address_of_another_machine_cannot_be_bound() -> None:
    """The system's reason is in the message."""
    with pytest.raises(ConfigError, match="Cannot assign requested address"):
        bind(make_server(), parse_address("192.0.2.1:50051", "--grpc"))
