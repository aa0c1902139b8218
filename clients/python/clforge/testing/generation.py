"""One request of the fake server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from clforge.v1 import generation_pb2 as pb


class Generation:
    """Sends the updates of one request; another thread may grant it credit, or cancel it."""

    def __init__(self, request_id: int, params: pb.GenerationParams, send: Callable[[pb.Update], None]) -> None:
        self._request_id, self._send = request_id, send
        self._sequence = [0] * (params.n if params.HasField("n") else 1)
        self._max_tokens = params.stopping.max_tokens if params.stopping.HasField("max_tokens") else None
        self._credit = params.initial_credit if params.HasField("initial_credit") else None
        timeout = params.timeout.ToTimedelta().total_seconds() if params.HasField("timeout") else None
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._is_cancelled = False
        self._changed = threading.Condition()

    @property
    def num_choices(self) -> int:
        """Choices that each get the same text."""
        return len(self._sequence)

    def grant(self, tokens: int) -> None:
        """The client allows more tokens."""
        with self._changed:
            if self._credit is not None:
                self._credit += tokens
            self._changed.notify_all()

    def cancel(self) -> None:
        """Ends the request with CANCELLED before its next token."""
        with self._changed:
            self._is_cancelled = True
            self._changed.notify_all()

    def accept(self, accepted: pb.Accepted) -> None:
        """Says that the request was admitted."""
        self._update(0, accepted=accepted)

    def answer(self, pieces: Sequence[str], num_prompt_tokens: int, pace_seconds: float) -> Iterable[int]:
        """Sends one token for each piece, then the end; yields after each token, how many choices got it."""
        limit = len(pieces) if self._max_tokens is None else self._max_tokens
        reason: pb.FinishReason.ValueType = pb.FINISH_REASON_LENGTH if limit < len(pieces) else pb.FINISH_REASON_STOP
        num_sent = 0
        for piece in pieces[:limit]:
            ended = self._await_credit(pace_seconds)
            if ended is not None:
                reason = ended
                break
            num_sent += 1
            for choice in range(self.num_choices):
                self._update(choice, delta=pb.Delta(text=piece, num_tokens=1, token_ids=[num_sent]))
            yield self.num_choices
        usage = pb.Usage(prompt_tokens=num_prompt_tokens, generated_tokens=num_sent, delivered_tokens=num_sent)
        self.finish(pb.Finished(reason=reason, usage=usage))

    def finish(self, finished: pb.Finished) -> None:
        """Says how each choice ended."""
        for choice in range(self.num_choices):
            self._update(choice, finished=finished)

    def _await_credit(self, pace_seconds: float) -> pb.FinishReason.ValueType | None:
        """Takes credit for a token when there is some and its time has come; the reason if the request ends before."""
        due = time.monotonic() + pace_seconds
        with self._changed:
            while not self._is_cancelled:
                now = time.monotonic()
                if self._deadline is not None and now >= self._deadline:
                    return pb.FINISH_REASON_DEADLINE
                if now >= due and self._credit != 0:
                    if self._credit is not None:
                        self._credit -= 1
                    return None
                limits = [limit - now for limit in (due if now < due else None, self._deadline) if limit is not None]
                self._changed.wait(min(limits, default=None))
        return pb.FINISH_REASON_CANCELLED

    def _update(
        self,
        choice: int,
        *,
        accepted: pb.Accepted | None = None,
        delta: pb.Delta | None = None,
        finished: pb.Finished | None = None,
    ) -> None:
        sequence = self._sequence[choice]
        self._sequence[choice] += 1
        self._send(
            pb.Update(
                request_id=self._request_id,
                choice=choice,
                sequence=sequence,
                accepted=accepted,
                delta=delta,
                finished=finished,
            )
        )
