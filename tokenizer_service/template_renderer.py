"""The process that renders chat templates, as this one sees it: started when first used, replaced when it has died."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import structlog

from service_common.errors import UnavailableError
from tokenizer_service.render_limits import OUT_OF_MEMORY, RenderLimits
from tokenizer_service.waiting_line import WaitingLine

MAX_WAITING = 1024
MAX_WAITING_CHARACTERS = 1 << 25  # of requests, as for texts that wait to be encoded

_MODULE = "tokenizer_service.template_process"
_START_SECONDS = 20.0
_STUCK_SECONDS = 20.0  # of the clock; a process that is neither stopped nor starved runs into its own limit before
_ENDING_SECONDS = 5.0  # from closing its output to the end of a process
_LONGEST_IN_JSON = 6  # bytes of a character
_LONGEST_ERROR_BYTES = 1 << 16


class RenderError(Exception):
    """The conversation cannot be rendered; str() tells why. `broke_limit`: it would cost more than it may."""

    def __init__(self, message: str, *, broke_limit: bool = False) -> None:
        super().__init__(message)
        self.broke_limit = broke_limit


class _DiedError(RenderError):
    """The process ended, for no limit of ours, before it had answered."""


class TemplateRenderer:
    """Renders one conversation after the other, as they come. Belongs to the event loop, which it never holds up."""

    def __init__(self, limits: RenderLimits) -> None:
        self._limits = limits
        self._line = WaitingLine("to be rendered", max_waiting=MAX_WAITING, max_characters=MAX_WAITING_CHARACTERS)
        self._asking: asyncio.Task[bytes] | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return None if self._process is None else self._process.pid

    @staticmethod
    def request(template: str, variables: Mapping[str, Any]) -> bytes:
        """What `render` takes; `variables` are of JSON's types. Takes time in proportion to their size."""
        request = {"template": template, "variables": variables, "now": datetime.now().isoformat()}
        return json.dumps(request, ensure_ascii=False).encode() + b"\n"

    async def render(self, request: bytes) -> bytes:
        """The answer to a `request`, for `text` to read.

        RenderError when the template has ended the process, ResourceExhaustedError when too many wait or too much
        text does, UnavailableError when there can be no process.
        """

        def begin() -> asyncio.Task[bytes]:
            self._asking = asyncio.create_task(self._ask(request))
            return self._asking

        return await self._line.run(begin, len(request))

    def text(self, answer: bytes) -> str:
        """The rendered conversation; RenderError tells why there is none. Takes time in proportion to its size."""
        fields = json.loads(answer)
        if "too_long" in fields:
            raise _limit_error(f"{self._limits.output_characters} characters of text")
        if "error" in fields:
            raise RenderError(f"the model's chat template fails: {fields['error']}")
        text: str = fields["text"]
        return text

    async def close(self) -> None:
        """Ends the process. Nobody may wait in `render`, nor call it again."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._end_process()

    async def _ask(self, request: bytes) -> bytes:
        try:
            return await self._exchange(request)
        except _DiedError as error:
            # Perhaps it died before this request, or was killed: no fault of the template's.
            structlog.get_logger(__name__).warning("the chat template renderer is replaced", cause=str(error))
            return await self._exchange(request)

    async def _exchange(self, request: bytes) -> bytes:
        process = self._process or await self._start()
        assert process.stdin is not None
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                process.stdin.write(request)
                await process.stdin.drain()
                return await _read_line(process)
        except TimeoutError:
            await self._end_process()
            raise _limit_error(f"{_STUCK_SECONDS:g} s") from None
        except (OSError, EOFError, ValueError):  # ValueError: a line longer than any answer
            raise self._cause(await self._end_process(_ENDING_SECONDS)) from None

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", _MODULE, json.dumps(asdict(self._limits))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=self._limits.output_characters * _LONGEST_IN_JSON + _LONGEST_ERROR_BYTES,
                process_group=0,  # so that Ctrl-C on a terminal reaches only us
            )
            async with asyncio.timeout(_START_SECONDS):
                await _read_line(process)
        except (OSError, EOFError) as error:
            await self._end_process()
            raise UnavailableError(
                f"the chat template renderer does not start ({error or 'no answer'}); the server's log tells more",
                reason="NO_RENDERER",
                retry_after_seconds=1.0,
            ) from error
        return process

    async def _end_process(self, grace_seconds: float = 0.0) -> int:
        """Exit code of the process, which is killed unless it ends by itself in time; 0 without one."""
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            # Not killed at once: Popen.send_signal would take the exit code of one that has ended from its watcher.
            return await asyncio.wait_for(process.wait(), grace_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.wait()

    def _cause(self, exit_code: int) -> RenderError:
        if exit_code == -signal.SIGPROF:
            return _limit_error(f"{self._limits.cpu_seconds:g} s of processor time")
        if exit_code == OUT_OF_MEMORY:
            return _limit_error(f"{self._limits.memory_bytes >> 20} MiB of memory")
        names = {-number: number.name for number in signal.Signals}
        how = names.get(exit_code, f"exit code {exit_code}")
        return _DiedError(f"the model's chat template ended the process that renders it ({how})")


def _limit_error(limit: str) -> RenderError:
    return RenderError(f"the model's chat template takes more than {limit} for this conversation", broke_limit=True)


async def _read_line(process: asyncio.subprocess.Process) -> bytes:
    """The next whole line; EOFError when there is none, ValueError for one beyond the limit."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError("it ended")
    return line
