"""The thread that owns the device.

The RPC side posts commands and receives events; it never touches the engine itself. The thread sleeps on a condition
while there is nothing to do, so neither side polls. Loading happens on the same thread, so that the device is only ever
used by one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import structlog

if TYPE_CHECKING:
    from engine_service.engine import Engine, EngineEvent
    from engine_service.scheduling.sequence import Request

T = TypeVar("T")
Command = Callable[["Engine"], object]


class EngineLoop:
    """Runs an engine on its own thread until `close`.

    `load` makes the engine, on the thread; `deliver` gets the events of each turn, on the thread, and must not block.
    `loaded` resolves with the engine when it can take requests, or with the error that kept it from loading; `stopped`
    resolves when the thread has ended, with the error that ended it if it was not `close`.
    """

    def __init__(self, load: Callable[[], Engine], deliver: Callable[[Sequence[EngineEvent]], None]) -> None:
        self._load, self._deliver = load, deliver
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._turn_started: float | None = None
        self.loaded: Future[Engine] = Future()
        self.stopped: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_closing(self) -> bool:
        """Whether `close` has been called; a load that takes long looks at it."""
        return self._closing

    def start(self) -> None:
        """Starts loading."""
        self._thread.start()

    def post(self, command: Command) -> None:
        """Has the engine thread run `command` before its next step. Any thread may call; it does not block."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def query(self, question: Callable[[Engine], T]) -> Future[T]:
        """Has the engine thread answer `question` between two steps."""
        answer: Future[T] = Future()

        def ask(engine: Engine) -> None:
            try:
                answer.set_result(question(engine))
            except Exception as error:
                answer.set_exception(error)

        self.post(ask)
        return answer

    def reserve(self, request: Request) -> None:
        """Gives `request` its place in the queue, before it is posted. The engine must be loaded; any thread may call.

        ResourceExhaustedError where the queue is full, so that a refusal need not wait for the step in flight.
        """
        self.loaded.result(0).scheduler.queue_limits.enter(request)

    def withdraw(self, request_id: int) -> None:
        """Gives a place back at once, before the cancellation of its request gets through. Any thread may call."""
        self.loaded.result(0).scheduler.queue_limits.leave(request_id)

    def seconds_in_turn(self) -> float:
        """How long the thread has been busy with its present turn; 0 while it sleeps. Health is judged by it."""
        started = self._turn_started
        return 0.0 if started is None else time.monotonic() - started

    def close(self) -> None:
        """Ends the thread after its present turn and waits for it. May be called twice, and while loading."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            engine = self._load()
        except BaseException as error:
            self.loaded.set_exception(error)
            self.stopped.set_result(None)
            return
        self.loaded.set_result(engine)
        try:
            while (commands := self._next_commands(engine)) is not None:
                self._turn(engine, commands)
            engine.close()
        except BaseException as error:
            structlog.get_logger(__name__).critical("engine thread failed", exc_info=error)
            self.stopped.set_exception(error)
        else:
            self.stopped.set_result(None)

    def _next_commands(self, engine: Engine) -> list[Command] | None:
        """Waits until there is something to do; None when closing."""
        self._turn_started = None
        with self._wake:
            while not (self._closing or self._commands or engine.has_work()):
                self._wake.wait(engine.seconds_to_deadline())
                if engine.seconds_to_deadline() == 0:
                    break
            self._turn_started = time.monotonic()
            commands = list(self._commands)
            self._commands.clear()
            return None if self._closing else commands

    def _turn(self, engine: Engine, commands: Sequence[Command]) -> None:
        for command in commands:
            command(engine)
        if events := engine.step():
            self._deliver(events)
