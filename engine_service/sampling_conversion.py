"""The wire's SamplingParams as the engine's own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from clforge.v1 import generation_pb2 as pb
from engine_service.scheduling.sampling_methods import Dry, Mirostat, Xtc
from engine_service.scheduling.sampling_params import SamplingParams
from engine_service.scheduling.sampling_stages import Stage
from service_common.errors import InvalidArgumentError

MAX_BREAKERS = 16
MAX_BREAKER_BYTES = 64
_DEFAULT_BREAKERS = ("\n", ":", '"', "*")
_NUMBERS = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "penalty_window"),
)

IdsContaining = Callable[[bytes], frozenset[int]]  # the tokens that have these bytes in their text


def to_sampling_params(sampling: pb.SamplingParams, vocab_size: int, ids_containing: IdsContaining) -> SamplingParams:
    """Checked parameters, with a seed of our own where there is none. InvalidArgumentError names what is wrong."""
    if sampling.bad_words:
        raise InvalidArgumentError("params.sampling.bad_words", "set", "words belong to the tokenizer service")
    given = _fields(sampling, *_NUMBERS)
    if sampling.HasField("dry"):
        given["dry"] = _to_dry(sampling.dry, ids_containing)
    if sampling.HasField("xtc"):
        given["xtc"] = Xtc.create(**_fields(sampling.xtc, "probability", "threshold"))
    if sampling.HasField("mirostat"):
        given["mirostat"] = Mirostat.create(**_fields(sampling.mirostat, "target", "learning_rate"))
    return SamplingParams.create(
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
        vocab_size=vocab_size,
        order=[_to_stage(index, value) for index, value in enumerate(sampling.order)],
        logit_bias=sampling.logit_bias,
        allowed_token_ids=sampling.allowed_token_ids,
        bad_token_sequences=[sequence.ids for sequence in sampling.bad_token_sequences],
        **given,
    )


def _to_stage(index: int, value: int) -> Stage:
    if value not in pb.SamplingStage.values() or value == pb.SAMPLING_STAGE_UNSPECIFIED:
        raise InvalidArgumentError(f"params.sampling.order[{index}]", value, "must be a stage other than UNSPECIFIED")
    return Stage[pb.SamplingStage.Name(pb.SamplingStage.ValueType(value)).removeprefix("SAMPLING_STAGE_")]


def _to_dry(dry: pb.Dry, ids_containing: IdsContaining) -> Dry:
    field = "params.sampling.dry.sequence_breakers"
    breakers = list(dry.sequence_breakers)
    if len(breakers) > MAX_BREAKERS:
        raise InvalidArgumentError(field, f"a list of {len(breakers)} strings", f"must hold at most {MAX_BREAKERS}")
    for index, breaker in enumerate(breakers):
        num_bytes = len(breaker.encode())
        if num_bytes > MAX_BREAKER_BYTES or (not breaker and len(breakers) > 1):
            limit = f"must have between 1 and {MAX_BREAKER_BYTES} bytes; an empty one stands alone, for none at all"
            raise InvalidArgumentError(f"{field}[{index}]", f"a string of {num_bytes} bytes", limit)
    texts = [] if breakers == [""] else breakers or _DEFAULT_BREAKERS
    return Dry.create(
        breaker_ids=frozenset().union(*(ids_containing(text.encode()) for text in texts)),
        **_fields(dry, "multiplier", "base", "allowed_length", "window"),
    )


def _fields(message: Message, *names: str) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names if message.HasField(name)}
