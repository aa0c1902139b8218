"""One of our services as a child process that announces itself on its standard output."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence

from service_common import held_start
from service_common.options import child_environment

KILL_SECONDS = 10.0  # beyond its own limits a child gets so long to end

_QUIET_GRPC = {"GRPC_VERBOSITY": "NONE"}  # or its C code writes beside the one line that tells a user what is wrong


class Child:
    """A running service. Must be started from the main thread, since the kernel ties its life to that thread's."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, name: str, module: str, arguments: Sequence[str], *, listens: bool = False, held: bool = False
    ) -> Child:
        """Starts `python -P -m module`, which reads its standard input if it `listens`.

        One that is `held` imports what it is made of and then does nothing, not even read its options, before
        `release`. Its group is its own, so that Ctrl-C on a terminal reaches only us.
        """
        modules = [held_start.__name__, module] if held else [module]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", *modules, *arguments),
            stdin=asyncio.subprocess.PIPE if listens or held else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=_QUIET_GRPC | child_environment(),
            process_group=0,
        )
        return cls(name, process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def announced(self) -> str:
        """The address on its `ready` line, once it has come; never returns for a child that ends without one."""
        return await asyncio.shield(self._announced)

    async def ended(self) -> int:
        """Its exit code, once it has ended; -N when signal N ended it."""
        return await self._process.wait()

    def tell(self, line: str) -> None:
        """Writes a line to its standard input, if it is still there; it must have been started as one that listens."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def release(self) -> None:
        """Lets one that was held begin."""
        self.tell(held_start.BEGIN)

    def interrupt(self) -> None:
        """Asks it to drain; a second time, to hurry."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    async def stop(self, seconds: float) -> bool:
        """Interrupts it and returns when it has ended: whether by itself, or killed after `seconds`."""
        self.interrupt()
        by_itself = True
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            by_itself = False
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reader
        return by_itself

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, _, address = line.decode(errors="replace").strip().partition(" ")
            if word == "ready" and not self._announced.done():
                self._announced.set_result(address)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    names = {-number: number.name for number in signal.Signals}
    return f"was ended by {names[code]}" if code in names else f"ended with exit code {code}"
