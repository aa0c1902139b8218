"""How a process starts, drains and ends.

SIGTERM and SIGINT alike: health NOT_SERVING, new work refused, work in flight finishes or, after the grace, is
cancelled, the server stops, exit code 0. A second signal skips the waiting; a third is the system's default and kills.

Exit codes: 0 drained, 1 a failure of our own (its traceback is in the log), 2 cannot start as asked (one line), 130
interrupted before it served.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Never, Protocol

import grpc
import structlog

from service_common.errors import StartupError
from service_common.health import Health

EXIT_FAILURE = 1
EXIT_STARTUP = 2
EXIT_INTERRUPTED = 130

FLUSH_SECONDS = 1.0  # for the last messages of cancelled work to reach their readers

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Work(Protocol):
    """What a service has in flight, as the shutdown sequence sees it. Called from the event loop's thread."""

    def refuse_new(self) -> None:
        """From now on new work gets UNAVAILABLE."""

    def cancel_all(self) -> None:
        """Ends work in flight with a terminal message each. Returns at once; `wait_idle` tells when it is done."""

    async def wait_idle(self) -> None:
        """Returns when nothing is in flight and what was written has been handed to the transport."""


class Shutdown:
    """The wish to end this process: the first request drains, the second one hurries. For the event loop's thread."""

    def __init__(self) -> None:
        self.exit_code = 0
        self._requested = asyncio.Event()
        self._hurried = asyncio.Event()

    def request(self, reason: str, exit_code: int = 0) -> None:
        """Asks for a drain, or if one is under way, for an end without waiting. The largest `exit_code` given wins."""
        self.exit_code = max(self.exit_code, exit_code)
        if exit_code != EXIT_STARTUP:  # the one line that tells a user what is wrong stays alone
            structlog.get_logger(__name__).info("shutdown requested", reason=reason, again=self._requested.is_set())
        (self._hurried if self._requested.is_set() else self._requested).set()

    async def requested(self) -> None:
        """Returns once a shutdown has been asked for."""
        await self._requested.wait()

    async def hurried(self) -> None:
        """Returns once it has been asked for twice."""
        await self._hurried.wait()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Turns SIGTERM and SIGINT into requests while the block runs; a third signal is not caught."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)

        def received(number: signal.Signals) -> None:
            self.request(number.name)
            if self._hurried.is_set():
                for each in signals:
                    loop.remove_signal_handler(each)
                    signal.signal(each, signal.SIG_DFL)

        for each in signals:
            loop.add_signal_handler(each, received, each)
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)


async def serve(
    server: grpc.aio.Server, health: Health, work: Work, shutdown: Shutdown, *, drain_seconds: float
) -> None:
    """Runs a started `server` until `shutdown` is requested, then drains and stops it.

    Returns with the server stopped; links that the work needed are the caller's to close afterwards.
    """
    with shutdown.on_signals():
        await shutdown.requested()
        health.drain()
        work.refuse_new()
        if not await _finishes(work, drain_seconds, shutdown):
            structlog.get_logger(__name__).warning("cancelling what is still in flight")
            work.cancel_all()
            await _finishes(work, FLUSH_SECONDS, None)
        await server.stop(grace=FLUSH_SECONDS)


def run_service(main: Callable[[], Coroutine[Any, Any, int]]) -> Never:
    """Runs `main` in a new event loop and ends the process with the code it returns, or as this module's head says."""
    try:
        code = asyncio.run(main())
    except StartupError as error:
        exit_with(error)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        structlog.get_logger(__name__).critical("the service failed", exc_info=error)
        code = EXIT_FAILURE
    sys.exit(code)


def exit_with(error: StartupError) -> Never:
    """Prints one line to standard error and ends the process with exit code 2."""
    sys.stderr.write(f"clforge: {' '.join(str(error).split())}\n")
    sys.exit(EXIT_STARTUP)


def announce_ready(address: str) -> None:
    """Prints `ready ADDRESS` to standard output, at once: whoever started this process waits for the line."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"ready {address}\n")
        sys.stdout.flush()


def end_with_parent(parent_pid: int) -> None:
    """Has the kernel send this process SIGTERM when its parent ends, however it ends. Linux; elsewhere without effect.

    `parent_pid` guards against a parent that ended before this call: then the process exits now. The parent must start
    its children from its main thread, since the kernel watches the thread that forked.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(EXIT_FAILURE)


async def _finishes(work: Work, seconds: float, shutdown: Shutdown | None) -> bool:
    """Whether the work ends within `seconds`, and before a second request to shut down."""
    idle = asyncio.ensure_future(work.wait_idle())
    others = [asyncio.ensure_future(shutdown.hurried())] if shutdown else []
    await asyncio.wait([idle, *others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finished = idle.done()
    for task in (idle, *others):
        task.cancel()
    return finished
