"""What a stream still has to send: updates in order, numbered per choice, merged while the writer is late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Protocol

from clforge.v1.generation_pb2 import Accepted, Delta, Finished, Update

MAX_BATCH_BYTES = 1 << 20  # well below the 4 MiB that gRPC clients take by default
MAX_DELTA_TOKENS = 512  # of one update, so that its log-probabilities do not make it larger than a batch either


class UpdateWriter(Protocol):
    """Where the updates of requests go: an `Outbox`, or who looks at them on their way there."""

    def accepted(self, request_id: int, accepted: Accepted) -> None:
        """The request was admitted."""

    def delta(self, request_id: int, choice: int, delta: Delta) -> None:
        """More output of a choice."""

    def finished(self, request_id: int, choice: int, finished: Finished) -> None:
        """The last update of a choice."""


class Outbox:
    """Collects updates from one event loop's callbacks and hands them to that loop's one writer in batches.

    A delta for a choice whose last unsent update is a delta of the same section is merged into it, up to
    MAX_DELTA_TOKENS, so that a slow reader costs few messages however many steps went by; log-probabilities of a prompt
    stay apart from output. What is held is bounded by the requests' prompts and credit. Sequence numbers count what is
    sent: per choice from 0, without gaps.
    """

    def __init__(self) -> None:
        self._unsent: list[Update] = []
        self._open_deltas: dict[tuple[int, int], Update] = {}
        self._next_sequence: dict[tuple[int, int], int] = {}
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._closed = False

    def accepted(self, request_id: int, accepted: Accepted) -> None:
        """The request was admitted; counts as an update of its choice 0."""
        self._append(Update(request_id=request_id, accepted=accepted))

    def delta(self, request_id: int, choice: int, delta: Delta) -> None:
        """More output of a choice."""
        waiting = self._open_deltas.get((request_id, choice))
        if waiting is not None and _may_grow(waiting.delta, delta):
            waiting.delta.text += delta.text
            waiting.delta.token_ids.extend(delta.token_ids)
            waiting.delta.num_tokens += delta.num_tokens
            waiting.delta.logprobs.extend(delta.logprobs)
            waiting.delta.prompt_logprobs.extend(delta.prompt_logprobs)
        else:
            update = Update(request_id=request_id, choice=choice, delta=delta)
            self._append(update)
            self._open_deltas[request_id, choice] = update

    def finished(self, request_id: int, choice: int, finished: Finished) -> None:
        """The last update of a choice; its numbering is forgotten."""
        self._append(Update(request_id=request_id, choice=choice, finished=finished))
        self._open_deltas.pop((request_id, choice), None)
        self._next_sequence.pop((request_id, choice), None)

    def forget(self, request_id: int) -> None:
        """Drops the numbering of a request that ends without a terminal update, because its reader is gone."""
        for key in [key for key in self._next_sequence if key[0] == request_id]:
            del self._next_sequence[key]

    def close(self) -> None:
        """No more updates will come: `batches` ends once all are handed out."""
        self._closed = True
        self._changed.set()
        self._taken.set()

    async def room(self, limit: int) -> None:
        """Returns when fewer than `limit` updates are unsent, or none will be any more."""
        while len(self._unsent) >= limit and not self._closed:
            self._taken.clear()
            await self._taken.wait()

    async def batches(self, turn: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[list[Update]]:
        """Everything unsent, as soon as there is something, until `close`. One consumer.

        It waits for its `turn` before each batch but the last, and takes in what comes meanwhile.
        """
        while True:
            await self._changed.wait()
            if turn is not None and not self._closed:
                await turn()
            self._changed.clear()
            if self._unsent:
                batch, self._unsent = self._unsent, []
                self._open_deltas.clear()
                self._taken.set()
                yield batch
            if self._closed and not self._unsent:
                return

    def _append(self, update: Update) -> None:
        key = update.request_id, update.choice
        update.sequence = self._next_sequence.get(key, 0)
        self._next_sequence[key] = update.sequence + 1
        self._unsent.append(update)
        self._changed.set()


def _may_grow(waiting: Delta, more: Delta) -> bool:
    if waiting.section != more.section or bool(waiting.prompt_logprobs) != bool(more.prompt_logprobs):
        return False
    return max(waiting.num_tokens, len(waiting.prompt_logprobs)) < MAX_DELTA_TOKENS


def split(updates: Iterable[Update], max_bytes: int = MAX_BATCH_BYTES) -> Iterator[list[Update]]:
    """The updates in order, in lists that are as long as `max_bytes` allows; a larger update is alone in its list."""
    part: list[Update] = []
    num_bytes = 0
    for update in updates:
        size = update.ByteSize()
        if part and num_bytes + size > max_bytes:
            yield part
            part, num_bytes = [], 0
        part.append(update)
        num_bytes += size
    if part:
        yield part
