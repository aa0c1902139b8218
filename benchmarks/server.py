"""Servers as users start them, on a free port of this machine, and the memory that their processes take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from engine_service.bench.machine import ROOT
from engine_service.bench.protocol import BenchError
from service_common.options import child_environment

PROCESSES = ("engine", "tokenizer")
_SERVE = ("-P", "-c", "from clforge.entry import main; main()", "serve", "--grpc=127.0.0.1:0")
_ENGINE = ("-P", "-m", "engine_service", "--engine=127.0.0.1:0")
_TOKENIZER = ("-P", "-m", "tokenizer_service")
_STUB_ENGINE = ("-m", "benchmarks.stub_engine")
_QUIET = "--log-level=warning"
_SECONDS_TO_END = 60.0


class Server:
    """A running server at `address`. Use it as a context manager: it drains and ends with the block."""

    def __init__(self, command: Sequence[str]) -> None:
        """Returns when it serves; BenchError where it does not get there. See the class methods."""
        # In a session of its own Ctrl-C reaches the bench alone, which then ends the server.
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=child_environment(),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        word, _, self.address = self._process.stdout.readline().strip().partition(" ")
        if word != "ready":
            raise BenchError(f"the server ended with exit code {self._process.wait()}; what it said stands above")

    @classmethod
    def whole(cls, model: Path, *options: str) -> Self:
        """`clforge serve`: both processes, text in and out."""
        return cls([*_SERVE, f"--model={model.absolute()}", _QUIET, *options])

    @classmethod
    def engine(cls, model: Path, *options: str) -> Self:
        """The engine service alone, token ids in and out: no token waits for the rest of its character."""
        return cls([*_ENGINE, f"--model={model.absolute()}", _QUIET, *options])

    @classmethod
    def stub_engine(cls, address: str, model: Path, *, step_seconds: float = 0.0) -> Self:
        """An engine at `address` that has ready-made tokens of the vocabulary of `model`; see stub_engine."""
        return cls(
            [*_STUB_ENGINE, f"--grpc={address}", f"--model={model.absolute()}", f"--step-seconds={step_seconds}"]
        )

    @classmethod
    def tokenizer(cls, address: str, engine_address: str) -> Self:
        """The tokenizer service alone at `address`, for the engine at another one."""
        return cls([*_TOKENIZER, f"--grpc={address}", f"--engine={engine_address}", _QUIET])

    def cpu_seconds(self) -> float:
        """Processor time that it has taken, its ended children not counted."""
        user, system = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> dict[str, int]:
        """What each of PROCESSES that `clforge serve` started has resident now; pages of files do not count."""
        return {name: _resident_bytes(pid) for name, pid in self._pids().items()}

    def peak_bytes(self) -> dict[str, int]:
        """The most that each of PROCESSES ever had resident, less the pages of files that it has now."""
        return {name: _peak_bytes(pid) for name, pid in self._pids().items()}

    def _pids(self) -> dict[str, int]:
        pids = {}
        for pid in _children(self._process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = next((name for name in PROCESSES if f"{name}_service" in words), None)
            if name is not None:
                pids[name] = pid
        return pids

    def close(self) -> None:
        """Lets it drain and waits for its end."""
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _resident_bytes(pid: int) -> int:
    """Resident less shared pages (proc(5), statm): files' pages come and go with the page cache."""
    resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes(pid: int) -> int:
    """VmHWM less RssFile (proc(5), status)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kibibytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return (kibibytes["VmHWM"] - kibibytes["RssFile"]) << 10
