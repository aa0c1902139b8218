"""Cases by the SDK: a session, with a task for each request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from clforge import ClforgeError, Client, Event, Request, Session
from tests.conformance.python.record import Record


class SdkCase:
    """One case's run. `ask` asks the harness for something and returns when it is done."""

    def __init__(self, client: Client, window: int, ask: Callable[[str], None]) -> None:
        self._client, self._window, self._ask = client, window, ask
        self._records: dict[int, Record] = {}
        self._requests: dict[int, Request] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """The outcome of each request."""
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(self._client.session(window=self._window))
            for step in case["steps"]:
                if "reopen" in step:
                    await stack.aclose()
                    await self._client.wait_for_ready()
                    session = await stack.enter_async_context(self._client.session(window=self._window))
                else:
                    await self._step(session, step)
            await asyncio.gather(*self._readers)
        return {str(label): record.outcome() for label, record in self._records.items()}

    async def _step(self, session: Session, step: dict[str, Any]) -> None:
        match step:
            case {"submit": first, "text": text, "params": params}:
                for label in range(first, first + step.get("count", 1)):
                    request = self._requests[label] = await session.submit(text, **params)
                    self._read(label, request.events(), step.get("pause_at"))
            case {"generate": label, "text": text, "params": params}:
                self._read(label, self._client.generate(text, **params), None)
            case {"wait": label, "for": event}:
                await self._records[label].wait(event)
            case {"cancel": label}:
                self._requests[label].cancel()
            case {"resume": label}:
                self._records[label].resume()
            case {"sleep": seconds}:
                await asyncio.sleep(seconds)
            case {"ask": what}:
                await asyncio.to_thread(self._ask, what)
            case _:
                raise ValueError(f"no such step: {step}")

    def _read(self, label: int, events: AsyncGenerator[Event, None], pause_at: str | None) -> None:
        record = self._records[label] = Record(pause_at)

        async def read() -> None:
            try:
                async for event in events:
                    await record.take(event)
            except ClforgeError as error:
                record.fail(error)

        self._readers.append(asyncio.create_task(read()))
