"""The event loop that all sync clients of a process share, on a thread of its own.

One loop, since gRPC has one completion queue for all loops of a process and wakes every one of them for each event.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, ClassVar, Self, TypeVar

_T = TypeVar("_T")


class BackgroundLoop:
    """A running event loop: take a share with `acquire`, give it back with `release`; the last one stops the loop."""

    _shared: ClassVar[BackgroundLoop | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._num_users = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="clforge-sync", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls) -> Self:
        """The process's loop, started if none runs."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            cls._shared._num_users += 1
            return cls._shared  # type: ignore[return-value]  # there are no subclasses

    def release(self) -> None:
        """This user is done; nothing may run for it any more."""
        with BackgroundLoop._lock:
            self._num_users -= 1
            if self._num_users:
                return
            BackgroundLoop._shared = None
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def is_closed(self) -> bool:
        """Whether the last user has gone."""
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, which is cancelled if the caller is interrupted (Ctrl-C) meanwhile."""
        if self.is_closed:
            work.close()
            raise RuntimeError("this client was closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
