"""The parameters of a generation, as keyword arguments, and their way into a message.

A parameter that is not given takes the server's default. Ranges are the server's to check; only what a message cannot
hold is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias, TypedDict

from clforge.chat import Chat, chat_to_proto
from clforge.errors import invalid
from clforge.v1 import generation_pb2 as pb
from clforge.v1 import tokenizer_pb2

# A text, a conversation, or token ids.
Prompt: TypeAlias = str | Chat | Sequence[int]


class Dry(TypedDict, total=False):
    """A penalty for going on with a repetition; without `sequence_breakers` the server's own."""

    multiplier: float
    base: float
    allowed_length: int
    window: int
    sequence_breakers: Sequence[str]


class Xtc(TypedDict, total=False):
    """How often the most likely tokens are dropped, and from which share on."""

    probability: float
    threshold: float


class Mirostat(TypedDict, total=False):
    """The surprise aimed at, in bits, and how fast its limit follows. `target` is required."""

    target: float
    learning_rate: float


class Params(TypedDict, total=False):
    """Keyword arguments of `generate`, `complete` and `submit`.

    Choosing tokens: `temperature` (0 is greedy), `top_k`, `top_p`, `min_p`, `seed`, and from `typical_p` to `order`:
    docs/sampling.md, by whose names stages go. Ending: `max_tokens`, `min_tokens`, `stop` (strings),
    `stop_token_ids`, `ignore_eos`, `include_stop`. `n` choices; `priority`, higher is sooner;
    `timeout` in seconds, queueing included; `cache_salt` and `no_cache` for the prefix cache; `logprobs`: how many most
    likely tokens to report beside the chosen one; `model`: the name of the model wanted; `echo`: return the prompt's
    text before the output; `tell_reasoning`: tell reasoning (`<think>`) apart from the answer, which is the default for
    a Chat where the model knows marks for it.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    typical_p: float
    top_n_sigma: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_window: int
    dry: Dry
    xtc: Xtc
    mirostat: Mirostat
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_token_sequences: Sequence[Sequence[int]]
    bad_words: Sequence[str]
    order: Sequence[str]
    max_tokens: int
    min_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop: bool
    n: int
    priority: int
    timeout: float
    cache_salt: str
    no_cache: bool
    logprobs: int
    model: str
    echo: bool
    tell_reasoning: bool


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "typical_p", "top_n_sigma", "repetition_penalty")
_SAMPLING += ("frequency_penalty", "presence_penalty", "penalty_window", "allowed_token_ids", "bad_words")
_METHODS = ("dry", "xtc", "mirostat")
_STOPPING = ("max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "include_stop")
_GENERAL = ("n", "priority", "cache_salt", "no_cache", "logprobs", "echo", "tell_reasoning")
_LISTS = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words", "sequence_breakers")


def prompt_to_proto(prompt: Prompt) -> tokenizer_pb2.Prompt:
    """Text, a conversation, or token ids taken as they are. InvalidRequestError for what a message cannot hold."""
    result = tokenizer_pb2.Prompt()
    if isinstance(prompt, Chat):
        result.chat.CopyFrom(chat_to_proto(prompt))
        return result
    if isinstance(prompt, str):
        _set(result, "text", prompt)
    else:
        _set(result.token_ids, "ids", prompt, is_list=True)
        result.token_ids.SetInParent()
    return result


def params_to_proto(params: Params) -> pb.GenerationParams:
    """All but `model`. TypeError for an unknown name, InvalidRequestError for a value that a message cannot hold."""
    unknown = set(params) - set(Params.__annotations__)
    if unknown:
        raise TypeError(f"unknown generation parameter {min(unknown)!r}; there are {', '.join(Params.__annotations__)}")
    result = pb.GenerationParams()
    given: dict[str, Any] = {name: value for name, value in params.items() if value is not None}
    for message, names in ((result.sampling, _SAMPLING), (result.stopping, _STOPPING), (result, _GENERAL)):
        for name in names:
            if name in given:
                _set(message, name, given[name], is_list=name in _LISTS)
    _set_methods(result.sampling, given)
    if "timeout" in given:
        set_timeout(result, given["timeout"])
    return result


def _set_methods(sampling: pb.SamplingParams, given: dict[str, Any]) -> None:
    """What is more than a number or a list of them."""
    for name in _METHODS:
        if name in given:
            method = getattr(sampling, name)
            method.SetInParent()
            for field, value in given[name].items():
                if field not in method.DESCRIPTOR.fields_by_name:
                    raise invalid(f"{name}.{field}", value, f"there are {', '.join(method.DESCRIPTOR.fields_by_name)}")
                _set(method, field, value, is_list=field in _LISTS)
    for token_id, bias in given.get("logit_bias", {}).items():
        try:
            sampling.logit_bias[token_id] = bias
        except (ValueError, TypeError, OverflowError) as error:
            raise invalid("logit_bias", {token_id: bias}, str(error)) from error
    for ids in given.get("bad_token_sequences", ()):
        _set(sampling.bad_token_sequences.add(), "ids", ids, is_list=True)
    for stage in given.get("order", ()):
        name = f"SAMPLING_STAGE_{stage.upper()}"
        try:
            sampling.order.append(pb.SamplingStage.Value(name))
        except ValueError as error:
            raise invalid("order", stage, "must be a stage, such as penalties, temperature or top_k") from error


def set_timeout(params: pb.GenerationParams, seconds: float | None) -> None:
    """Sets the timeout, None for none. InvalidRequestError for what is no number of seconds."""
    params.ClearField("timeout")
    if seconds is None:
        return
    try:
        params.timeout.FromTimedelta(timedelta(seconds=seconds))
    except (OverflowError, ValueError, TypeError) as error:
        raise invalid("timeout", seconds, "must be a number of seconds") from error


def _set(message: Any, field: str, value: Any, *, is_list: bool = False) -> None:
    try:
        if is_list:
            if isinstance(value, str | bytes):
                raise TypeError("must be a list")
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(field, value, str(error)) from error
