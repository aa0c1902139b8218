"""`clforge serve` as a user starts it, on a free port of this machine, and what its processes take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from benchmarks.protocol import BenchError
from service_common.options import child_environment

PROCESSES = ("engine", "tokenizer")
_SECONDS_TO_END = 60.0


class Server:
    """A running server. Use it as a context manager: it drains and ends with the block."""

    def __init__(self, model: Path, *options: str) -> None:
        """Returns when it serves. BenchError where it does not get there."""
        command = [sys.executable, "-P", "-c", "from clforge.entry import main; main()", "serve"]
        fixed = [f"--model={model}", "--grpc=127.0.0.1:0", "--log-level=warning"]
        # In a session of its own Ctrl-C reaches the bench alone, which then ends the server.
        self._process = subprocess.Popen(
            [*command, *fixed, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        word, _, self.address = self._process.stdout.readline().strip().partition(" ")
        if word != "ready":
            raise BenchError(f"clforge serve ended with exit code {self._process.wait()}; what it said stands above")

    def rss_bytes(self) -> dict[str, int]:
        """The memory that each of PROCESSES has in use now: its resident set, less what files lend it."""
        sizes = {}
        for pid in _children(self._process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = next((name for name in PROCESSES if f"{name}_service" in words), None)
            if name is not None:
                sizes[name] = _resident_bytes(pid)
        return sizes

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
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _resident_bytes(pid: int) -> int:
    """RSS less pages of files (proc(5), statm: resident and shared), since those are nobody's to free."""
    resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
