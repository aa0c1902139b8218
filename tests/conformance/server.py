"""The server of all clients: `clforge serve` with the bundled model, which a case may have drained."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clforge.v1.tokenizer_pb2 import ListRequestsRequest, WatchLoadRequest
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from engine_service.bundled import BUNDLED_MODEL
from tests.integration.served import address_of, start

MAX_LIVE_REQUESTS = 64  # as many as the case of one too many submits
PAUSE_TIMEOUT_SECONDS = 5.0  # no case but the one about it waits so long for credit, on a busy machine either
_SECONDS = 30.0
_SERVICE = "clforge.v1.TokenizerService"


class Server:
    """A server on a Unix socket of its own; whoever takes its place after a drain has the same address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._process = self._start()

    def serve(self, asked: str) -> None:
        """What a case may ask for."""
        {"drain": self._drain, "kill": self._kill, "restart": self._restart}[asked]()

    def until_idle(self) -> None:
        """Returns when no request is live and no KV block is held by one."""
        with grpc.insecure_channel(self.address) as channel:
            stub = TokenizerServiceStub(channel)

            def idle() -> bool:
                load = next(iter(stub.WatchLoad(WatchLoadRequest(), timeout=_SECONDS))).load
                return not stub.ListRequests(ListRequestsRequest()).requests and not load.num_used_blocks

            _until(idle, "the server is idle")

    def stop(self) -> None:
        """Drains; the exit code must be 0."""
        self._process.terminate()
        try:
            assert self._process.wait(_SECONDS) == 0
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        process = start(
            BUNDLED_MODEL,
            f"--grpc={self.address}",
            f"--max-live-requests={MAX_LIVE_REQUESTS}",
            f"--pause-timeout-seconds={PAUSE_TIMEOUT_SECONDS}",
        )
        assert address_of(process) == self.address
        return process

    def _drain(self) -> None:
        self._process.terminate()
        with grpc.insecure_channel(self.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=_SERVICE)
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            _until(lambda: health.Check(request, timeout=_SECONDS).status == not_serving, "the server drains")

    def _kill(self) -> None:
        """Both services first: whose parent dies, ends in good order."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        for child in [child for task in tasks for child in (task / "children").read_text().split()]:
            os.kill(int(child), signal.SIGKILL)
        self.kill()
        _until(lambda: not self._accepts(), "nobody listens")

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.address.removeprefix("unix:")) == 0

    def _restart(self) -> None:
        """Another server takes the place of one that drains, or was killed."""
        if self._process.poll() is None:
            self.stop()
        self._process = self._start()


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.01)


@contextmanager
def served() -> Iterator[Server]:
    """A server until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="clforge-") as folder:
        server = Server(f"unix:{Path(folder) / 's'}")
        try:
            yield server
            server.stop()
        finally:
            server.kill()
