"""How the bench talks to the processes that measure: one JSON object a line.

A child first says {"progress": fraction} any number of times and {"ready": facts} once. From then on it answers each
{"operation": name, "arguments": {…}} of the bench by {"result": …} or {"error": message}. It works at no other time, so
that the bench decides whose turn on the CPU it is, and ends when its standard input does.

Both ends of the pipe have the same operations: those of `Side`, and of our own engine those of `OwnSide` too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from service_common.errors import ClforgeError, StartupError

CHUNK_LEN = 512  # tokens of a prompt that either side computes at once
_OPERATIONS = ("prefill", "start", "decode", "copy", "profile")
_SECONDS_TO_END = 10.0


class BenchError(StartupError):
    """The bench cannot go on. Ends it with exit code 2 and one line."""


class Timed(NamedTuple):
    """So many tokens (of a copy: bytes) took so long.

    `disturbance` is how many CPUs its threads lacked meanwhile, on average: the time for which they could have run and
    had to wait, by the time that passed. None where the system does not tell.
    """

    num_tokens: int
    seconds: float
    disturbance: float | None = None

    @property
    def rate(self) -> float:
        """Tokens, or bytes, per second."""
        return self.num_tokens / self.seconds


class Side(Protocol):
    """What is measured: our engine, or the peer."""

    def prefill(self, prompt_ids: Sequence[int]) -> Timed:
        """Computes a prompt and the logits of its last token, from an empty cache, in chunks of CHUNK_LEN tokens.

        What counts is the last chunk: for a prompt of at most CHUNK_LEN tokens, all of it.
        """

    def start(self, group: str, prompts: Sequence[Sequence[int]], max_len: int) -> None:
        """Computes the prompts of a new group of sequences, each of which can grow to `max_len` tokens."""

    def decode(self, group: str, num_steps: int) -> Timed:
        """Lets all sequences of a group grow, together, by `num_steps` tokens each."""


class OwnSide(Side, Protocol):
    """Our engine, which also tells what the machine can do and where the time goes."""

    def copy(self) -> Timed:
        """Copies memory on the device: bytes read and bytes written, both counted."""

    def profile(self, name: str, num_seqs: int, prompt_len: int, num_steps: int) -> dict[str, Any]:
        """Where the time of a workload's steps goes: `profile.Profile.to_json`."""


class SideProcess:
    """An OwnSide, or only a Side, in a child process. Use it as a context manager: the child ends with the block."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        """Starts the child and returns when it is ready. BenchError, naming `name`, where it does not get there."""
        self._name = name
        # In a session of its own Ctrl-C reaches the bench alone, which then ends its children.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            while "ready" not in (message := self._read()):
                on_progress(message["progress"])
        except BaseException:
            self.close()
            raise
        self.facts: dict[str, Any] = message["ready"]

    def prefill(self, prompt_ids: Sequence[int]) -> Timed:
        """As Side.prefill."""
        return self._timed("prefill", prompt_ids=prompt_ids)

    def start(self, group: str, prompts: Sequence[Sequence[int]], max_len: int) -> None:
        """As Side.start."""
        self._ask("start", group=group, prompts=prompts, max_len=max_len)

    def decode(self, group: str, num_steps: int) -> Timed:
        """As Side.decode."""
        return self._timed("decode", group=group, num_steps=num_steps)

    def copy(self) -> Timed:
        """As OwnSide.copy."""
        return self._timed("copy")

    def profile(self, name: str, num_seqs: int, prompt_len: int, num_steps: int) -> dict[str, Any]:
        """As OwnSide.profile."""
        workload = {"name": name, "num_seqs": num_seqs, "prompt_len": prompt_len, "num_steps": num_steps}
        profile: dict[str, Any] = self._ask("profile", **workload)
        return profile

    def close(self) -> None:
        """Ends the child and waits for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what a child that died has not read
            self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _timed(self, operation: str, **arguments: Any) -> Timed:
        before, started = _waited_seconds(self._process.pid), time.perf_counter()
        timed = Timed(*self._ask(operation, **arguments))
        after, seconds = _waited_seconds(self._process.pid), time.perf_counter() - started
        if before is None or after is None:
            return timed
        return timed._replace(disturbance=(after - before) / seconds)

    def _ask(self, operation: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"operation": operation, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._read()["result"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise BenchError(f"{self._name}: {message['error']}")
        return message

    def _death(self) -> BenchError:
        return BenchError(f"{self._name} ended with exit code {self._process.wait()}; what it said stands above")


def _waited_seconds(pid: int) -> float | None:
    """How long the threads of a process have waited for a CPU, in sum (Linux, Documentation/scheduler/sched-stats)."""
    nanoseconds = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            nanoseconds += int((task / "schedstat").read_text().split()[1])
    except OSError:
        return None
    return nanoseconds / 1e9


def tell(**message: Any) -> None:
    """In a child: sends a message to the bench."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def serve(open_side: Callable[[], tuple[Side, dict[str, Any]]]) -> None:
    """In a child: opens the side, which gives facts about it too, and answers until standard input ends."""
    try:
        side, facts = open_side()
    except ClforgeError as error:
        tell(error=str(error))
        return
    tell(ready=facts)
    for line in sys.stdin:
        request = json.loads(line)
        assert request["operation"] in _OPERATIONS
        try:
            tell(result=getattr(side, request["operation"])(**request["arguments"]))
        except ClforgeError as error:
            tell(error=str(error))
