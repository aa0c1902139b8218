"""Between the wire's messages and the engine's own types: the one place of the engine that knows both."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from clforge.v1 import generation_pb2 as pb
from clforge.v1.engine_pb2 import TokenSubmit
from engine_service.constraints.spec import MAX_TEXT_BYTES, ConstraintSpec, Kind
from engine_service.sampling_conversion import IdsContaining, to_sampling_params
from engine_service.scheduling.messages import FinishedEvent, PromptLogprobsEvent, RequestInfo
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import GenerationLimits, checked_logprobs
from engine_service.scheduling.sequence import FinishReason, Request, SequenceState
from engine_service.scheduling.speculation import Speculation
from engine_service.scheduling.stats import SchedulerStats
from service_common.errors import InvalidArgumentError, OutOfRangeError
from service_common.status import to_status

_MAX_TIMEOUT_SECONDS = 86400 * 365
_MAX_SALT_BYTES = 256
_MAX_OWNER_BYTES = 64
_MAX_CHOICE_TEXTS = 1024

_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: pb.FINISH_REASON_DEADLINE,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_STATES = {
    SequenceState.QUEUED: pb.REQUEST_STATE_QUEUED,
    SequenceState.PREFILL: pb.REQUEST_STATE_PREFILL,
    SequenceState.DECODE: pb.REQUEST_STATE_DECODE,
    SequenceState.PAUSED: pb.REQUEST_STATE_PAUSED,
    SequenceState.PREEMPTED: pb.REQUEST_STATE_PREEMPTED,
}


def to_request(
    submit: TokenSubmit,
    *,
    engine_id: int,
    stream_id: int,
    now: float,
    vocab_size: int,
    context_length: int,
    ids_containing: IdsContaining,
) -> Request:
    """A checked request. InvalidArgumentError, OutOfRangeError or UnimplementedError names what is wrong."""
    params = submit.params
    _check_prompt(submit, vocab_size, context_length)
    _check_served(params)
    _check_owner(submit.owner)
    stopping = params.stopping
    return Request(
        id=engine_id,
        prompt_ids=tuple(submit.token_ids),
        sampling=to_sampling_params(params.sampling, vocab_size, ids_containing),
        limits=GenerationLimits.create(
            context_left=context_length - len(submit.token_ids),
            vocab_size=vocab_size,
            max_tokens=_optional(stopping, "max_tokens"),
            min_tokens=_optional(stopping, "min_tokens"),
            stop_token_ids=stopping.stop_token_ids,
            ignore_eos=_optional(stopping, "ignore_eos"),
        ),
        arrival=now,
        deadline=_deadline(params, now),
        num_choices=params.n if params.HasField("n") else 1,
        priority=params.priority,
        initial_credit=_optional(params, "initial_credit"),
        logprobs=checked_logprobs(_optional(params, "logprobs")),
        prompt_logprobs=checked_logprobs(_optional(params, "prompt_logprobs"), "params.prompt_logprobs"),
        stream_id=(stream_id, submit.client_stream_id),
        cache_salt=None if params.no_cache else (submit.owner, _checked_salt(params.cache_salt)),
        speculation=Speculation.create(
            max_draft_tokens=_optional(params.speculation, "max_draft_tokens"),
            ngram_size=_optional(params.speculation, "ngram_size"),
        ),
    )


def to_constraint(params: pb.GenerationParams) -> ConstraintSpec | None:
    """What the output has to match. InvalidArgumentError names what is wrong, or contradicts it."""
    if not params.HasField("constraint"):
        return None
    kind = params.constraint.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError("params.constraint", "empty", f"must be one of {', '.join(Kind)}")
    if params.stopping.ignore_eos:
        limit = "must be false beside a constraint, whose end is an end-of-generation token"
        raise InvalidArgumentError("params.stopping.ignore_eos", "true", limit)
    if params.sampling.allowed_token_ids:
        limit = "must be empty beside a constraint, which tells the allowed tokens by itself"
        raise InvalidArgumentError("params.sampling.allowed_token_ids", "set", limit)
    if kind == "choices":
        return ConstraintSpec(Kind.CHOICES, _choice_texts(params.constraint.choices))
    return ConstraintSpec.create(Kind(kind), getattr(params.constraint, kind))


def to_delta(token: SampledToken) -> pb.Delta:
    """One token as a delta."""
    delta = pb.Delta(token_ids=[token.token_id], num_tokens=1)
    if token.logprob is not None:
        delta.logprobs.append(_to_logprobs(token, token.logprob))
    return delta


def to_prompt_delta(event: PromptLogprobsEvent) -> pb.Delta:
    """Log-probabilities of prompt tokens as a delta, which stands for no generated token."""
    tokens = [_to_logprobs(token, token.logprob) for token in event.tokens if token.logprob is not None]
    return pb.Delta(prompt_logprobs=tokens)


def _to_logprobs(token: SampledToken, logprob: float) -> pb.TokenLogprobs:
    top = [pb.Logprob(token_id=top_id, logprob=top_logprob) for top_id, top_logprob in token.top]
    return pb.TokenLogprobs(chosen=pb.Logprob(token_id=token.token_id, logprob=logprob), top=top)


def to_finished(event: FinishedEvent) -> pb.Finished:
    """The end of a choice, for the wire."""
    finished = pb.Finished(
        reason=_REASONS[event.reason],
        usage=pb.Usage(
            prompt_tokens=event.usage.prompt_tokens,
            cached_tokens=event.usage.cached_tokens,
            generated_tokens=event.usage.generated_tokens,
            delivered_tokens=event.usage.delivered_tokens,
            drafted_tokens=event.usage.drafted_tokens,
            accepted_tokens=event.usage.accepted_tokens,
        ),
        timings=pb.Timings(
            queue=_duration(event.timings.queue_seconds),
            prefill=_duration(event.timings.prefill_seconds),
            decode=_duration(event.timings.decode_seconds),
        ),
    )
    if event.stop_token_id is not None:
        finished.stop_token_id = event.stop_token_id
    if event.error is not None:
        finished.error.CopyFrom(to_status(event.error))
    return finished


def to_load(stats: SchedulerStats) -> pb.Load:
    """The engine's load, for the wire."""
    blocks = stats.blocks
    return pb.Load(
        num_requests_running=stats.num_requests_running,
        num_requests_waiting=stats.num_requests_waiting,
        num_requests_paused=stats.num_requests_paused,
        num_waiting_prompt_tokens=stats.num_waiting_prompt_tokens,
        num_blocks=blocks.num_blocks,
        num_used_blocks=blocks.num_used_blocks,
        num_cached_blocks=blocks.num_cached_blocks,
        block_size=blocks.block_size,
        num_steps=stats.num_steps,
        prompt_tokens=stats.prompt_tokens,
        generation_tokens=stats.generation_tokens,
        num_preemptions=stats.num_preemptions,
    )


def to_request_info(global_id: str, info: RequestInfo) -> pb.RequestInfo:
    """A live request under its public name."""
    return pb.RequestInfo(
        global_id=global_id,
        state=_STATES[info.state],
        num_prompt_tokens=info.num_prompt_tokens,
        num_generated_tokens=info.num_generated_tokens,
        num_blocks=info.num_blocks,
        priority=info.priority,
        age=_duration(info.age_seconds),
    )


def _check_prompt(submit: TokenSubmit, vocab_size: int, context_length: int) -> None:
    num_tokens = len(submit.token_ids)
    if num_tokens == 0:
        raise InvalidArgumentError("submit.token_ids", "empty", "must hold at least one token")
    if num_tokens >= context_length:  # before the ids are looked at: a message can hold millions
        raise OutOfRangeError(
            f"the prompt has {num_tokens} tokens; the served context of {context_length} must keep room for one more",
            reason="PROMPT_TOO_LONG",
            field="submit.token_ids",
        )
    ids = np.fromiter(submit.token_ids, np.uint32, num_tokens)
    if ids.max() >= vocab_size:
        index = int(np.argmax(ids >= vocab_size))
        limit = f"must be below the vocabulary's {vocab_size} tokens"
        raise InvalidArgumentError(f"submit.token_ids[{index}]", int(ids[index]), limit)


def _check_served(params: pb.GenerationParams) -> None:
    if params.stopping.stop:
        raise InvalidArgumentError("params.stopping.stop", "set", "stop strings belong to the tokenizer service")


def _choice_texts(choices: pb.Choices) -> str:
    field, num_texts = "params.constraint.choices.texts", len(choices.texts)
    if not 1 <= num_texts <= _MAX_CHOICE_TEXTS:
        limit = f"must hold between 1 and {_MAX_CHOICE_TEXTS}"
        raise InvalidArgumentError(field, f"a list of {num_texts} texts", limit)
    num_bytes = sum(len(text.encode()) for text in choices.texts)
    if num_bytes > MAX_TEXT_BYTES:
        raise InvalidArgumentError(field, f"{num_bytes} bytes long together", f"must have at most {MAX_TEXT_BYTES}")
    return json.dumps(list(choices.texts), ensure_ascii=False)


def _check_owner(owner: str) -> None:
    num_bytes = len(owner.encode())
    if num_bytes > _MAX_OWNER_BYTES:
        raise InvalidArgumentError("submit.owner", f"{num_bytes} bytes long", f"must have at most {_MAX_OWNER_BYTES}")


def _checked_salt(salt: str) -> str:
    num_bytes = len(salt.encode())
    if num_bytes > _MAX_SALT_BYTES:
        raise InvalidArgumentError(
            "params.cache_salt", f"{num_bytes} bytes long", f"must have at most {_MAX_SALT_BYTES}"
        )
    return salt


def _deadline(params: pb.GenerationParams, now: float) -> float | None:
    if not params.HasField("timeout"):
        return None
    seconds = params.timeout.seconds + params.timeout.nanos * 1e-9
    if not 0 < seconds <= _MAX_TIMEOUT_SECONDS:
        limit = f"must be positive and at most {_MAX_TIMEOUT_SECONDS} s"
        raise InvalidArgumentError("params.timeout", f"{seconds:g} s", limit)
    return now + seconds


def _optional(message: Message, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
