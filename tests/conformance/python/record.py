"""What one request of a case has brought so far."""

from __future__ import annotations

import asyncio
from typing import Any

from clforge import Accepted, ClforgeError, ConnectionLostError, Delta, Event, StatusError, UnreachableError

_TRANSPORT_FAILURES: dict[type[ClforgeError], str] = {
    UnreachableError: "UNREACHABLE",
    ConnectionLostError: "CONNECTION_LOST",
}
EVENTS = ("accepted", "delta", "finished")


class Record:
    """Takes a request's events; `wait` steps wait for it, and a reader that pauses waits here for its `resume`."""

    def __init__(self, pause_at: str | None = None) -> None:
        self._pause_at = pause_at
        self._seen = {name: asyncio.Event() for name in EVENTS}
        self._resumed = asyncio.Event()
        self._num_tokens, self._text = 0, ""
        self._end: dict[str, Any] = {"end": None}

    async def wait(self, event: str) -> None:
        """Returns when the event has come, or the end without it."""
        await self._seen[event].wait()

    def resume(self) -> None:
        """Ends the pause."""
        self._resumed.set()

    async def take(self, event: Event) -> None:
        """An event came. Returns when the next one may be read."""
        if isinstance(event, Accepted):
            await self._saw("accepted")
        elif isinstance(event, Delta):
            self._num_tokens += event.num_tokens
            self._text += event.text
            await self._saw("delta")
        else:
            self._finish({"end": event.reason.name})

    def fail(self, error: ClforgeError) -> None:
        """The request ended with an error."""
        self._finish({"end": "ERROR", **failure(error)})

    def outcome(self) -> dict[str, Any]:
        """As the table's `expect` names it."""
        return {**self._end, "num_tokens": self._num_tokens, "text": self._text}

    async def _saw(self, name: str) -> None:
        self._seen[name].set()
        if name == self._pause_at:
            await self._resumed.wait()

    def _finish(self, end: dict[str, Any]) -> None:
        self._end = end
        for seen in self._seen.values():
            seen.set()


def failure(error: ClforgeError) -> dict[str, Any]:
    """Code and details of an error."""
    if not isinstance(error, StatusError):
        return {"code": _TRANSPORT_FAILURES[type(error)]}
    return {
        "code": error.code,
        "reason": None if error.reason == "UNKNOWN" else error.reason,
        "field": error.field,
        "retry": error.retry_after_seconds is not None,
    }
