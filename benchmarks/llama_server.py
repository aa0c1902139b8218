"""A running llama-server, and what it says of its build."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from benchmarks.llama_cpp import SERVER_VARIABLE
from engine_service.bench.protocol import BenchError

_HOST = "127.0.0.1"
_SECONDS_TO_START, _SECONDS_TO_END = 300.0, 30.0
_POLL_SECONDS = 0.1
_SYSTEM_INFO = re.compile(r"system_info:.*?\|\s*(.*)")


class LlamaServer:
    """llama-server with `num_streams` slots, at `address` (host:port). Use it as a context manager.

    `facts` are its version, the instruction sets that it uses, and its command line without this machine's folders.
    """

    def __init__(self, binary: Path, model: Path, num_streams: int, context_tokens: int, threads: int) -> None:
        """Returns when it serves; BenchError where it does not get there."""
        self.address = f"{_HOST}:{_free_port()}"
        options = [
            *("-np", str(num_streams), "-c", str(num_streams * context_tokens), "-t", str(threads)),
            *("-ctk", "f16", "-ctv", "f16", "--cache-ram", "0", "--no-webui"),
        ]
        self._log = tempfile.NamedTemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        place = ["--host", _HOST, "--port", self.address.rpartition(":")[2]]
        build = _build(binary)
        self._process = subprocess.Popen(
            [str(binary), "-m", str(model), *options, *place],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._await_readiness()
        except BaseException:
            self.close()
            raise
        command = " ".join(["llama-server", "-m", model.name, *options])
        self.facts = {**build, "command": command}

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _await_readiness(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                last = (self._said().strip().splitlines() or ["it said nothing"])[-1]
                raise BenchError(f"llama-server ended with exit code {code}: {last}")
            with contextlib.suppress(urllib.error.URLError, OSError):  # not listening, or 503 while it loads
                urllib.request.urlopen(f"http://{self.address}/health", timeout=_SECONDS_TO_END).close()
                return
            time.sleep(_POLL_SECONDS)
        raise BenchError(f"llama-server was not ready within {_SECONDS_TO_START:.0f} s")

    def _said(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")


def system_info(log: str) -> str:
    """The instruction sets that llama-server's log names; empty where it names none."""
    return match[1].strip() if (match := _SYSTEM_INFO.search(log)) else ""


def _build(binary: Path) -> dict[str, str]:
    """What it says of its version, its compiler, and the instruction sets that it uses; empty what it does not say.

    BenchError where it cannot be run.
    """
    try:
        said = _output([str(binary), "--version"])
        # It tells its instruction sets before it finds that this is no model, and only if asked for every detail.
        log = _output([str(binary), "-m", os.devnull, "-lv", "4", "--host", _HOST, "--port", str(_free_port())])
    except (subprocess.TimeoutExpired, OSError) as error:
        raise BenchError(
            f"{binary} does not run ({error}): name another by {SERVER_VARIABLE}, or unset that to have one built"
        ) from error
    version = "; ".join(line for line in said.splitlines() if line.startswith(("version", "built")))
    return {"version": version, "system_info": system_info(log)}


def _output(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS_TO_END)
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port
