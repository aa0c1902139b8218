"""How busy a server is, and with what: the values of `Client.load`, `watch_load` and `list_requests`. All immutable."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from clforge.v1 import generation_pb2 as pb


class RequestState(StrEnum):
    """Where a request is in its life. PAUSED waits for credit; PREEMPTED lost its KV blocks and will get some again."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    PAUSED = "paused"
    PREEMPTED = "preempted"


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A live request. Generated tokens and KV blocks are those of all its choices; `state` is that of the most advanced
    one, None where the server is newer than this client and names another."""

    global_id: str
    state: RequestState | None
    num_prompt_tokens: int
    num_generated_tokens: int
    num_blocks: int
    priority: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is.

    Running requests hold KV blocks, waiting ones have none yet or lost them, paused ones have no credit. Of the KV
    cache's blocks, used ones belong to live requests, and cached ones to the prefix cache alone. Steps, tokens and
    preemptions count from the engine's start.
    """

    num_requests_running: int
    num_requests_waiting: int
    num_requests_paused: int
    num_waiting_prompt_tokens: int
    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    block_size: int
    num_steps: int
    prompt_tokens: int
    generation_tokens: int
    num_preemptions: int

    @property
    def kv_usage(self) -> float:
        """The share of the KV cache's blocks that live requests use, from 0 to 1."""
        return self.num_used_blocks / self.num_blocks if self.num_blocks else 0.0


def load_from_proto(load: pb.Load) -> Load:
    """The load."""
    return Load(
        num_requests_running=load.num_requests_running,
        num_requests_waiting=load.num_requests_waiting,
        num_requests_paused=load.num_requests_paused,
        num_waiting_prompt_tokens=load.num_waiting_prompt_tokens,
        num_blocks=load.num_blocks,
        num_used_blocks=load.num_used_blocks,
        num_cached_blocks=load.num_cached_blocks,
        block_size=load.block_size,
        num_steps=load.num_steps,
        prompt_tokens=load.prompt_tokens,
        generation_tokens=load.generation_tokens,
        num_preemptions=load.num_preemptions,
    )


def request_info_from_proto(info: pb.RequestInfo) -> RequestInfo:
    """The live request."""
    return RequestInfo(
        global_id=info.global_id,
        state=_STATES.get(info.state),
        num_prompt_tokens=info.num_prompt_tokens,
        num_generated_tokens=info.num_generated_tokens,
        num_blocks=info.num_blocks,
        priority=info.priority,
        age_seconds=info.age.ToTimedelta() / timedelta(seconds=1),
    )


_STATES: dict[int, RequestState] = {
    pb.REQUEST_STATE_QUEUED: RequestState.QUEUED,
    pb.REQUEST_STATE_PREFILL: RequestState.PREFILL,
    pb.REQUEST_STATE_DECODE: RequestState.DECODE,
    pb.REQUEST_STATE_PAUSED: RequestState.PAUSED,
    pb.REQUEST_STATE_PREEMPTED: RequestState.PREEMPTED,
}
