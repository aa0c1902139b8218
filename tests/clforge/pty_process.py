"""The command line on a terminal, as a user has it: what is typed, and what is seen."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PATIENCE_SECONDS = 60.0  # for machines that are busy with something else
_LOOK_SECONDS = 1.0
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[=>])")
_PROGRAM = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "  # so that Ctrl-C is a signal
    "from clforge import cli; cli.main()"
)


class Terminal:
    """A command's terminal."""

    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self._descriptor = descriptor
        self._seen = b""
        self._news = asyncio.Event()
        self.process = process
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def type(self, keys: str) -> None:
        """Presses keys; Enter is a carriage return."""
        os.write(self._descriptor, keys.encode())

    async def until(self, text: str) -> str:
        """What is seen up to this text, which must come; the next call begins after it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while text not in (seen := self.rest()):
            assert time.monotonic() < deadline, f"{text!r} never came; there was {seen!r}"
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _LOOK_SECONDS)
        self._seen = seen.partition(text)[2].encode()
        return seen.partition(text)[0]

    def rest(self) -> str:
        """What has been seen since."""
        return _ESCAPES.sub(b"", self._seen).decode(errors="replace")

    async def ended(self) -> int:
        """The exit code."""
        return await asyncio.wait_for(self.process.wait(), _PATIENCE_SECONDS)

    def close(self) -> None:
        """Takes the terminal away."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            self._seen += os.read(self._descriptor, 65536)
        except OSError:  # nobody holds the other end any more
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._news.set()


@asynccontextmanager
async def on_terminal(*arguments: str) -> AsyncIterator[Terminal]:
    """`clforge` with `arguments` on a terminal of 24 lines of 100 columns; killed at the end of the block."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours, process)
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        terminal.close()
